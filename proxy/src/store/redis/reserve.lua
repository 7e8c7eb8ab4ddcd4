-- One admission: charges every counter or none.
-- KEYS: reservation, index of open reservations by their end, counters...
-- ARGV: now in microseconds ('': the server's clock), what to do ('r' reserve, 'l' only look), lease_ms, want, min, and for each
-- counter: rule, a, limit, cost, per_million.
-- Answers: now, 1 admitted, 0 refused, 'h' held already, 's' settled already; granted; each number as it was before.
local now, lease_ms = clock(ARGV[1]), tonumber(ARGV[3])
local granted, least = tonumber(ARGV[4]), tonumber(ARGV[5])
local want = granted
expire(KEYS[2], string.sub(KEYS[1], 1, -33), 16, now)

local found = read()
local answer = {text(now), '0', '0'}
local bases, is_refused = {}, false
for i = 3, #KEYS do
  local at = 5 * i - 9
  local rule, a, limit = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local cost, per_million = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local stored = must(found[i], KEYS[i])
  answer[i + 1] = found[i] or ''
  local room
  if rule == 'g' then
    local each = interval(a, limit)
    bases[i] = tat(stored or 0, now, each * limit)
    room = math.min(div(math.max(each * limit - (bases[i] - now), 0), each), limit)
  else
    bases[i] = stored or 0
    room = math.max(limit - bases[i], 0)
  end
  if cost > room then
    is_refused = true
  elseif cost + div_ceil(want * per_million, 1000000) > room then
    granted = math.min(granted, div((room - cost) * 1000000, per_million))
  end
end

if ARGV[2] == 'l' then return answer end
local known = lease_ms > 0 and opened(found[1])
if known then
  answer[2] = known == 's' and known or 'h'
  answer[3] = known == 's' and '0' or text(known[1])
  return answer
end
if is_refused or granted < least then return answer end

local open = {granted}
for i = 3, #KEYS do
  local at = 5 * i - 9
  local rule, a, limit = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local units = tonumber(ARGV[at + 3]) + div_ceil(granted * tonumber(ARGV[at + 4]), 1000000)
  local value = bases[i]
  if rule == 'g' then
    value = value + interval(a, limit) * units
  else
    value = value + units
  end
  if units > 0 then save(KEYS[i], rule, a, value, now) end
  local charged_to = rule == 'g' and value or 0
  local next = #open
  open[next + 1], open[next + 2], open[next + 3] = KEYS[i], rule, a
  open[next + 4], open[next + 5], open[next + 6] = limit, units, charged_to
end
if lease_ms > 0 and #KEYS > 2 then
  redis.call('SET', KEYS[1], cmsgpack.pack(open), 'PX', text(lease_ms + KEPT_AFTER_LEASE_MS))
  redis.call('ZADD', KEYS[2], text(div(now, 1000) + lease_ms), string.sub(KEYS[1], -32))
end
answer[2], answer[3] = '1', text(granted)
return answer
