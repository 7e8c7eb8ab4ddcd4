-- Gives back what nobody settled in time, also where no request comes by any more.
-- KEYS: index of open reservations. ARGV: what stands before an id in the key of its reservation, how many at most.
-- Answers how many there were.
return expire(KEYS[1], ARGV[1], tonumber(ARGV[2]), clock(''))
