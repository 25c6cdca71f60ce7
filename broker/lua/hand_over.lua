-- A worker passes its choice on: fences itself, puts the next job, and only then is done with its own. Not before the
-- choice's stream has what the new job builds on.
-- KEYS  record, active_phases, the entry's queue, the new job's queue, tokens
-- ARGV  group, choice, member, epoch, hop of the entry's job, hop of the new job, phase, new job, entry id,
--       events that the stream has at least
-- -> 1 handed over, 0 refused
local choice = ARGV[2]
local state = redis.call('HMGET', KEYS[1], 'epoch:' .. choice, 'hop:' .. choice, 'finished:' .. choice, 'given:' .. choice)
local handed_over, stale = 0, not state[1] or state[3]
if not stale then
  if state[1] == ARGV[4] and redis.call('XLEN', KEYS[5]) >= tonumber(ARGV[10]) then
    redis.call('HINCRBY', KEYS[1], 'epoch:' .. choice, 1)
    redis.call('HSET', KEYS[1], 'hop:' .. choice, ARGV[6], 'given:' .. choice, ARGV[4])
    redis.call('HSET', KEYS[2], ARGV[3], ARGV[7])
    redis.call('XADD', KEYS[4], '*', 'id', ARGV[3], 'job', ARGV[8])
    handed_over, stale = 1, true
  else
    if state[2] == ARGV[6] and state[4] == ARGV[4] then
      handed_over = 1 -- a repeat, its answer was lost
    end
    stale = tonumber(ARGV[5]) < tonumber(state[2])
  end
end
-- A refused giver whose job's hop still stands lost it to another worker that holds the very same entry: removing it
-- here would lose the choice if that worker died.
if stale then
  redis.call('XACK', KEYS[3], ARGV[1], ARGV[9])
  redis.call('XDEL', KEYS[3], ARGV[9])
end
return handed_over
