-- An open reservation in words. KEYS: reservation, index of open reservations. ARGV: id.
-- Answers its end in milliseconds, what was granted, and six words for each counter; nothing when it is settled or gone.
local open = opened(read()[1])
local ends = redis.call('ZSCORE', KEYS[2], ARGV[1])
if type(open) ~= 'table' or not ends then return {} end
local words = {text(tonumber(ends)), text(open[1])}
for at = 2, #open, 6 do
  words[at + 1], words[at + 2], words[at + 3] = open[at], open[at + 1], text(open[at + 2])
  words[at + 4], words[at + 5], words[at + 6] = text(open[at + 3]), text(open[at + 4]), text(open[at + 5])
end
return words
