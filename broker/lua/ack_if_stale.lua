-- Removes a queue entry that nobody can need any more.
-- KEYS  record, queue
-- ARGV  group, choice, hop of the entry's job, entry id
-- -> 1 removed, 0 its job still stands
local state = redis.call('HMGET', KEYS[1], 'hop:' .. ARGV[2], 'finished:' .. ARGV[2])
if state[1] and not state[2] and tonumber(ARGV[3]) >= tonumber(state[1]) then
  return 0
end
redis.call('XACK', KEYS[2], ARGV[1], ARGV[4])
redis.call('XDEL', KEYS[2], ARGV[4])
return 1
