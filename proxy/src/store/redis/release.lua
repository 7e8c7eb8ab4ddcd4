-- Gives back what is held. KEYS: counters. ARGV: units of each. Answers 1.
local now, found = clock(''), read()
for i, key in ipairs(KEYS) do
  correct(key, 'h', 0, 0, must(found[i], key), tonumber(ARGV[i]), 0, 0, now)
end
return 1
