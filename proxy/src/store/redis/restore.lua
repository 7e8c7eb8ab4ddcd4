-- The counterpart of dump. KEYS: reservation, index. ARGV: end in milliseconds, granted, and six words for each counter.
local open = {tonumber(ARGV[2])}
for at = 3, #ARGV, 6 do
  open[at - 1], open[at] = ARGV[at], ARGV[at + 1]
  for n = 2, 5 do
    open[at + n - 1] = tonumber(ARGV[at + n])
  end
end
local life_ms = math.max(tonumber(ARGV[1]) - div(clock(''), 1000), 0) + KEPT_AFTER_LEASE_MS
redis.call('SET', KEYS[1], cmsgpack.pack(open), 'PX', text(life_ms))
redis.call('ZADD', KEYS[2], ARGV[1], string.sub(KEYS[1], -32))
return 1
