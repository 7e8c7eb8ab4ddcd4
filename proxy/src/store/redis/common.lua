-- What the counting scripts share. The arithmetic is policy's quota.rs and gcra.rs, line by line, in whole numbers below 2^53,
-- which Lua's doubles hold exactly: microseconds since 1970 need 51 bits. Quotients are taken without rounding; see div.
--
-- A counter is a rule and two numbers: 'g' period_ms, limit; 'w' resets_at_ms, limit; 'h' 0, limit.
-- A reservation is {granted, key, rule, a, limit, units, charged_to, key, ...}, packed; a settled one is 's'.
-- All keys of one call lie in one slot; those of an old reservation lie there too, though nobody names them in KEYS.
local MOST = 9007199254740991
local WINDOW_SLACK_MS = 3600000
local KEPT_AFTER_LEASE_MS = 604800000

-- Microseconds: as given, or the server's for 0 and ''.
local function clock(given)
  local now = tonumber(given)
  if now and now > 0 then return now end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function text(number)
  return string.format('%.0f', number)
end

-- Exact: the remainder is, and so is the division of what is left.
local function div(number, by)
  return (number - math.fmod(number, by)) / by
end

local function div_ceil(number, by)
  return div(number + by - 1, by)
end

local function interval(period_ms, limit)
  return div_ceil(period_ms * 1000, math.max(limit, 1))
end

-- The number that was read under a key, nil when there is none; true besides when it is not ours. What has another type reads
-- as nothing.
local function number(found, key)
  if not found then return nil, redis.call('EXISTS', key) ~= 0 end
  if #found > 16 or found == '' or string.find(found, '%D') then return nil, true end
  return tonumber(found), false
end

local function must(found, key)
  local stored, is_foreign = number(found, key)
  if is_foreign then error('HEARTHDATA ' .. key .. ' is not a counter') end
  return stored
end

-- What stands under all KEYS, in one call; an index and a stream read as nothing.
local function read()
  return redis.call('MGET', unpack(KEYS))
end

local function tat(stored, now, burst)
  return math.min(math.max(stored, now), now + 2 * burst)
end

-- Numbers go to commands as they are: Redis writes those below 2^53 with 17 digits, which is exact.
local function save(key, rule, a, value, now)
  value = math.min(value, MOST)
  local life_ms
  if rule == 'g' then
    life_ms = div_ceil(math.max(value - now, 0), 1000)
  elseif rule == 'w' then
    life_ms = a + WINDOW_SLACK_MS - div(now, 1000)
  elseif value > 0 then
    redis.call('SET', key, value)
    return
  else
    life_ms = 0
  end
  if life_ms < 1 then
    redis.call('DEL', key)
  else
    redis.call('SET', key, value, 'PX', life_ms)
  end
end

-- From what was charged to what was spent.
local function correct(key, rule, a, limit, stored, units, charged_to, spent, now)
  local value
  if spent > units then
    if rule == 'g' then
      local each = interval(a, limit)
      value = tat(stored or 0, now, each * limit) + each * (spent - units)
    else
      value = (stored or 0) + spent - units
    end
  elseif spent == units or not stored then
    return
  elseif rule == 'g' then
    local back = math.min(interval(a, limit) * (units - spent), math.max(charged_to - now, 0))
    value = math.max(stored - back, 0)
  else
    value = math.max(stored - (units - spent), 0)
  end
  save(key, rule, a, value, now)
end

-- A reservation as it was read: 's' when it is settled, a table while it is open, nil when it is gone.
local function opened(packed)
  if not packed or packed == 's' then return packed or nil end
  local is_ours, open = pcall(cmsgpack.unpack, packed)
  if is_ours and type(open) == 'table' then return open end
  return nil
end

-- Gives back what was reserved by requests that nobody settled or extended in time; so many at most. How many there were.
local function expire(index, base, most, now)
  local due = redis.call('ZRANGEBYSCORE', index, '-inf', text(div(now, 1000)), 'LIMIT', 0, most)
  for _, id in ipairs(due) do
    local open = opened(redis.call('MGET', base .. id)[1])
    if type(open) == 'table' then
      for at = 2, #open, 6 do
        local stored, is_foreign = number(redis.call('MGET', open[at])[1], open[at])
        if not is_foreign then
          correct(open[at], open[at + 1], open[at + 2], open[at + 3], stored, open[at + 4], open[at + 5], 0, now)
        end
      end
      redis.call('DEL', base .. id)
    end
    redis.call('ZREM', index, id)
  end
  return #due
end

