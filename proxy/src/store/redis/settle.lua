-- One settlement, once an id: from what was charged to what was spent, and the entry for the books.
-- KEYS: reservation, index of open reservations, stream of the books, counters...
-- ARGV: now in microseconds ('': the server's clock), how long the id is remembered (ms), entry ('': none), and for each
-- counter: rule, a, limit, spent.
-- Answers 1, or 0 when it was settled before.
local now = clock(ARGV[1])
expire(KEYS[2], string.sub(KEYS[1], 1, -33), 16, now)
local found = read()
local open = opened(found[1])
if open == 's' then return 0 end

-- Everything is read before anything is written: what is not ours stops the whole.
local stored = {}
for i = 4, #KEYS do
  stored[i] = must(found[i], KEYS[i]) or false
end
if ARGV[3] ~= '' then
  redis.call('XADD', KEYS[3], '*', 'e', ARGV[3])
end
redis.call('SET', KEYS[1], 's', 'PX', ARGV[2])
redis.call('ZREM', KEYS[2], string.sub(KEYS[1], -32))
for i = 4, #KEYS do
  local at = 4 * i - 12
  local rule, a, limit = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local units, charged_to = 0, 0
  for n = 2, open and #open or 0, 6 do
    if open[n] == KEYS[i] then
      units, charged_to = open[n + 4], open[n + 5]
    end
  end
  correct(KEYS[i], rule, a, limit, stored[i] or nil, units, charged_to, tonumber(ARGV[at + 3]), now)
end
return 1
