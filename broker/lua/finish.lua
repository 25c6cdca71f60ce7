-- Ends a choice from outside the workers: raises the epoch, so that whoever works on it is refused from now on.
-- KEYS  record, tokens, active_sizes, active_phases, cancels channel, and the relay if the event is to be relayed
-- ARGV  nonce, choice, member, event, keep_s, relay_max_entries, relay_expire_s
-- -> 1 when this call ended the choice, else 0
local choice, member = ARGV[2], ARGV[3]
local state = redis.call('HMGET', KEYS[1], 'epoch:' .. choice, 'finished:' .. choice)
if not state[1] then
  return 0
end
if state[2] then
  -- The same nonce is the same call, repeated because its answer was lost.
  return state[2] == ARGV[1] and 1 or 0
end
local index = redis.call('XLEN', KEYS[2])
redis.call('HINCRBY', KEYS[1], 'epoch:' .. choice, 1)
redis.call('HSET', KEYS[1], 'finished:' .. choice, ARGV[1])
redis.call('XADD', KEYS[2], (index + 1) .. '-0', 'event', ARGV[4])
redis.call('HDEL', KEYS[3], member)
redis.call('HDEL', KEYS[4], member)
redis.call('EXPIRE', KEYS[2], ARGV[5])
if redis.call('HINCRBY', KEYS[1], 'remaining', -1) <= 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[5])
end
if KEYS[6] then
  redis.call('XADD', KEYS[6], 'MAXLEN', '~', ARGV[6], '*', member .. ':' .. index, ARGV[4])
  redis.call('EXPIRE', KEYS[6], ARGV[7])
end
redis.call('PUBLISH', KEYS[5], member)
return 1
