-- A worker starts on a choice: fences every earlier taker and returns where to go on.
-- KEYS  record, tokens, active_phases
-- ARGV  choice, member, hop of the job, phase
-- -> {request, epoch, when it was taken (as an entry id of that moment), event...} | nil when the job is stale or its
--    choice unknown or finished
-- include now
local choice = ARGV[1]
local state = redis.call('HMGET', KEYS[1], 'request', 'hop:' .. choice, 'finished:' .. choice)
if not state[1] or not state[2] or state[3] or tonumber(ARGV[3]) < tonumber(state[2]) then
  return false
end
redis.call('HSET', KEYS[1], 'hop:' .. choice, ARGV[3])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[4])
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch:' .. choice, 1)
local answer = {state[1], epoch, string.format('%.0f-0', now_ms())}
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do
  answer[#answer + 1] = entry[2][2]
end
return answer
