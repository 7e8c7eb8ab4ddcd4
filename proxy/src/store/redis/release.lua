-- Gives back what is held. KEYS: counters. ARGV: units of each. Answers 1.
local now = clock('')
for i, key in ipairs(KEYS) do
  correct(key, 'h', 0, 0, load(key), tonumber(ARGV[i]), 0, 0, now)
end
return 1
