-- Renews (duration above 0) or gives back (0) a lease, if it is still ours.
-- KEYS  step_lease
-- ARGV  token, duration_ms
-- -> 1 when it was ours
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if tonumber(ARGV[2]) > 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
else
  redis.call('DEL', KEYS[1])
end
return 1
