-- Takes back what an admission charged. Same keys and arguments as the admission; a number that is gone stays gone.
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

for i, key in ipairs(KEYS) do
  local rule, a, cost = ARGV[4 * i - 2], tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i + 1])
  local stored = redis.call('GET', key)
  if stored then
    if not string.match(stored, '^%d+$') or #stored > 16 then
      return redis.error_reply('HEARTHDATA ' .. key .. ' is not a counter')
    end
    local value, life_ms
    if rule == 'g' then
      value = math.max(tonumber(stored) - a * cost, 0)
      life_ms = math.ceil((value - now) / 1000)
    else
      value = math.max(tonumber(stored) - cost, 0)
      life_ms = a - math.floor(now / 1000)
    end
    if life_ms < 1 then
      redis.call('DEL', key)
    else
      redis.call('SET', key, string.format('%.0f', value), 'PX', string.format('%.0f', life_ms))
    end
  end
end
return 1
