-- Requests that still run keep what they reserved.
-- KEYS: index of open reservations. ARGV: now in microseconds ('': the server's clock), lease_ms, what stands before an id in the
-- key of its reservation, ids... Answers how many were there.
local now, lease_ms, extended = clock(ARGV[1]), tonumber(ARGV[2]), 0
for i = 4, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], text(div(now, 1000) + lease_ms), ARGV[i])
    redis.call('PEXPIRE', ARGV[3] .. ARGV[i], text(lease_ms + KEPT_AFTER_LEASE_MS))
    extended = extended + 1
  end
end
return extended
