-- A new request: its record, its load, its reader's lease, one prefill job per choice.
-- KEYS  record, prefill queue, active_sizes, active_phases, reader_leases, then the token stream of every choice
-- ARGV  nonce, max_waiting, request, sizes, phase, request_id, lease_ms, then the job of every choice
-- -> "created" | "in_use" | "full"
-- include now
local num_choices = #KEYS - 5
if redis.call('EXISTS', KEYS[1]) == 1 then
  -- The same nonce is the same call, repeated because its answer was lost.
  return redis.call('HGET', KEYS[1], 'nonce') == ARGV[1] and 'created' or 'in_use'
end
if redis.call('XLEN', KEYS[2]) + num_choices > tonumber(ARGV[2]) then
  return 'full'
end
redis.call('HSET', KEYS[1], 'nonce', ARGV[1], 'request', ARGV[3], 'choices', num_choices, 'remaining', num_choices)
redis.call('ZADD', KEYS[5], string.format('%.0f', now_ms() + ARGV[7]), ARGV[6])
for choice = 0, num_choices - 1 do
  local member = ARGV[6] .. ':' .. choice
  redis.call('DEL', KEYS[6 + choice])
  redis.call('HSET', KEYS[1], 'hop:' .. choice, 1, 'epoch:' .. choice, 0)
  redis.call('HSET', KEYS[3], member, ARGV[4])
  redis.call('HSET', KEYS[4], member, ARGV[5])
  redis.call('XADD', KEYS[2], '*', 'id', member, 'job', ARGV[8 + choice])
end
return 'created'
