-- One admission: charges every counter or none. The arithmetic is policy's quota.rs and gcra.rs, line by line, in whole
-- microseconds (below 2^53, so Lua's numbers are exact).
-- KEYS: the counters. ARGV[1]: now in microseconds for tests, or '' for the server's clock.
-- Then four for each counter: 'g', interval_us, burst_us, cost    or    'd', expires_at_ms, limit, cost.
-- Answers: now_us, 1 or 0, then each number as it was stored before, '' if there was none.
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local admitted = 1
local answer = {string.format('%.0f', now), 1}
local values, lives_ms = {}, {}

for i, key in ipairs(KEYS) do
  local rule, a, b, cost = ARGV[4 * i - 2], tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i]), tonumber(ARGV[4 * i + 1])
  local stored = redis.call('GET', key)
  local number = 0
  if stored then
    if not string.match(stored, '^%d+$') or #stored > 16 then
      return redis.error_reply('HEARTHDATA ' .. key .. ' is not a counter')
    end
    number = tonumber(stored)
  end
  answer[i + 2] = stored or ''
  if rule == 'g' then
    local tat = math.min(math.max(number, now), now + b) + a * cost
    if tat - now > b then admitted = 0 end
    values[i] = tat
    lives_ms[i] = math.ceil((tat - now) / 1000)
  else
    if number + cost > b then admitted = 0 end
    values[i] = number + cost
    lives_ms[i] = a - math.floor(now / 1000)
  end
end

answer[2] = admitted
if admitted == 1 then
  for i, key in ipairs(KEYS) do
    redis.call('SET', key, string.format('%.0f', values[i]), 'PX', string.format('%.0f', math.max(lives_ms[i], 1)))
  end
end
return answer
