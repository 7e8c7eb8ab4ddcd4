-- Replaces or removes one field of a hash if it still holds what was read, and tells the other proxies.
-- A user that may not publish still changes: the version tells.
-- KEYS: hash, version of all records, index of the hash's fields in order (if it has one).
-- ARGV: field, what was read ('' = nothing), new text ('' = remove), channel, news ('' = nobody is told).
local stored = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if stored ~= ARGV[2] then return 0 end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  if KEYS[3] then redis.call('ZREM', KEYS[3], ARGV[1]) end
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  if KEYS[3] then redis.call('ZADD', KEYS[3], 0, ARGV[1]) end
end
if ARGV[5] ~= '' then
  local version = redis.call('INCR', KEYS[2])
  redis.pcall('PUBLISH', ARGV[4], version .. ' ' .. ARGV[5])
end
return 1
