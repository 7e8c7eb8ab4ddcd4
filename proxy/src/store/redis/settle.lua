-- One settlement, once an id: from what was charged to what was spent, and the entry for the books.
-- KEYS: reservation, index of open reservations, stream of the books, counters...
-- ARGV: one MessagePack array: now in microseconds (0: the server's clock), how long the id is remembered (ms), and for each
-- counter: rule, a, limit, spent; and the entry ('': none).
-- Answers 1, or 0 when it was settled before.
local args = cmsgpack.unpack(ARGV[1])
local now = clock(args[1])
local found = read()
local open = opened(found[1])
if open == 's' then return 0 end
open = open or {}

-- Everything is read before anything is written: what is not ours stops the whole.
local stored = {}
for i = 4, #KEYS do
  stored[i] = must(found[i], KEYS[i]) or false
end
if ARGV[2] ~= '' then
  redis.call('XADD', KEYS[3], '*', 'e', ARGV[2])
end
redis.call('SET', KEYS[1], 's', 'PX', args[2])
redis.call('ZREM', KEYS[2], string.sub(KEYS[1], -32))

-- Where the reservation tells of a counter; nearly always the same place in both.
local function place(i)
  local same = 6 * i - 22
  if open[same] == KEYS[i] then return same end
  for n = 2, #open, 6 do
    if open[n] == KEYS[i] then return n end
  end
end

for i = 4, #KEYS do
  local at, n = 4 * i - 13, place(i)
  local units, charged_to = 0, 0
  if n then units, charged_to = open[n + 4], open[n + 5] end
  correct(KEYS[i], args[at], args[at + 1], args[at + 2], stored[i] or nil, units, charged_to, args[at + 3], now)
end
return 1
