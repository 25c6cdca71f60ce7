-- An entry that was delivered to a worker beyond what it asked for goes to the end of its queue.
-- KEYS  queue
-- ARGV  group, worker_id, entry id
-- -> 1 put back, 0 no longer this worker's
local own = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if own.err or #own == 0 then
  return 0
end
local entries = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
if #entries > 0 then
  redis.call('XDEL', KEYS[1], ARGV[3])
  redis.call('XADD', KEYS[1], '*', unpack(entries[1][2]))
end
return 1
