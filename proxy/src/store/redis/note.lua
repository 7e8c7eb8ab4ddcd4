-- Adds a line to the audit log, if it is still as long as when its last line was read.
-- KEYS: 1 list of lines. ARGV: 1 length, 2 line. Returns 1, or 0 when somebody was faster.
if redis.call('LLEN', KEYS[1]) ~= tonumber(ARGV[1]) then
  return 0
end
redis.call('RPUSH', KEYS[1], ARGV[2])
return 1
