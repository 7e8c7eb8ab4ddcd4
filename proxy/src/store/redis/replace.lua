-- Replaces one field of a hash if it still holds what was read. ARGV: field, what was read ('' = nothing), new text.
local stored = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if stored ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
