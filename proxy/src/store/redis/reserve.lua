-- One admission: charges every counter or none.
-- KEYS: reservation, index of open reservations by their end, counters...
-- ARGV: one MessagePack array, which costs less than as many words: now in microseconds (0: the server's clock), what to do ('r'
-- reserve, 'l' only look), lease_ms, want, min, and for each counter: rule, a, limit, cost, per_million.
-- Answers one line: now, 1 admitted, 0 refused, h held already, s settled already; granted; each number as it was before, - if
-- there was none.
local args = cmsgpack.unpack(ARGV[1])
local now, lease_ms, want, least = clock(args[1]), args[3], args[4], args[5]
local counters = #KEYS
local found, bases, granted, is_refused

local function answer(outcome)
  for i = 3, counters do found[i] = found[i] or '-' end
  return string.format('%.0f %s %.0f ', now, outcome, outcome == 's' and 0 or granted) .. table.concat(found, ' ', 3, counters)
end

local function weigh()
  bases, granted, is_refused = {}, want, false
  for i = 3, counters do
    local at = 5 * i - 9
    local limit, cost, per_million = args[at + 2], args[at + 3], args[at + 4]
    local stored = must(found[i], KEYS[i])
    local room
    if args[at] == 'g' then
      local each = interval(args[at + 1], limit)
      local base = tat(stored or 0, now, each * limit)
      bases[i] = base
      room = math.min(div(math.max(each * limit - (base - now), 0), each), limit)
    else
      bases[i] = stored or 0
      room = math.max(limit - bases[i], 0)
    end
    if cost > room then
      is_refused = true
    elseif per_million > 0 and cost + div_ceil(want * per_million, 1000000) > room then
      granted = math.min(granted, div((room - cost) * 1000000, per_million))
    end
  end
end

local function late()
  return expire(KEYS[2], string.sub(KEYS[1], 1, -33), 16, now)
end

if args[2] == 'l' then
  late()
  found = read()
  weigh()
  granted = 0
  return answer('0')
end
found = read()
local known = lease_ms > 0 and opened(found[1])
if known then
  granted = known ~= 's' and known[1] or 0
  return answer(known == 's' and 's' or 'h')
end
weigh()
-- What nobody settled in time is looked for only where it decides something; the sweeper gives back the rest.
if (is_refused or granted < want) and late() > 0 then
  found = read()
  weigh()
end
if is_refused or granted < least then
  granted = 0
  return answer('0')
end

local open, next = {granted}, 1
for i = 3, counters do
  local at = 5 * i - 9
  local rule, a, limit = args[at], args[at + 1], args[at + 2]
  local units, per_million = args[at + 3], args[at + 4]
  if per_million > 0 then units = units + div_ceil(granted * per_million, 1000000) end
  local value, charged_to = bases[i] + units, 0
  if rule == 'g' then
    value = bases[i] + interval(a, limit) * units
    charged_to = value
  end
  if units > 0 then save(KEYS[i], rule, a, value, now) end
  open[next + 1], open[next + 2], open[next + 3] = KEYS[i], rule, a
  open[next + 4], open[next + 5], open[next + 6] = limit, units, charged_to
  next = next + 6
end
if lease_ms > 0 and counters > 2 then
  redis.call('SET', KEYS[1], cmsgpack.pack(open), 'PX', lease_ms + KEPT_AFTER_LEASE_MS)
  redis.call('ZADD', KEYS[2], div(now, 1000) + lease_ms, string.sub(KEYS[1], -32))
end
return answer('1')
