-- Tells the other proxies something. KEYS: version of all records. ARGV: channel, news.
local version = redis.call('INCR', KEYS[1])
redis.pcall('PUBLISH', ARGV[1], version .. ' ' .. ARGV[2])
return version
