-- Writes sums that were added up from the ledger, if nobody else did meanwhile.
-- KEYS: 1 cursor, 2 set of periods, 3... one hash of sums for each period
-- ARGV: 1 cursor as it was read, 2 cursor afterwards, then for each sum: index of its hash in KEYS, period, field, row
-- Returns 1, or 0 when the cursor has moved.
local cursor = redis.call('GET', KEYS[1]) or ''
if cursor ~= ARGV[1] then
  return 0
end
for at = 3, #ARGV, 4 do
  redis.call('SADD', KEYS[2], ARGV[at + 1])
  redis.call('HSET', KEYS[tonumber(ARGV[at])], ARGV[at + 2], ARGV[at + 3])
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
