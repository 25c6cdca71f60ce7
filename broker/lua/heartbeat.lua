-- A worker is alive: renews its lease and status, and the entries it works on.
-- KEYS  workers, worker_leases, pulse, then the queue of every held entry
-- ARGV  group, worker_id, lease_ms, status, then the id of every held entry
-- -> numbers of the held entries that are no longer this worker's, from 1
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
-- Leases must not run out because Redis was away: after a silence of all workers everybody gets time to renew.
local beat_ms = redis.call('HGET', KEYS[3], 'beat_ms')
if beat_ms and now_ms - beat_ms > ARGV[3] / 2 then
  redis.call('HSET', KEYS[3], 'rest_until_ms', string.format('%.0f', now_ms + ARGV[3]))
end
redis.call('HSET', KEYS[3], 'beat_ms', string.format('%.0f', now_ms))
redis.call('HSET', KEYS[1], ARGV[2], ARGV[4])
redis.call('ZADD', KEYS[2], string.format('%.0f', now_ms + ARGV[3]), ARGV[2])
local lost = {}
for held = 1, #KEYS - 3 do
  local queue, id = KEYS[3 + held], ARGV[4 + held]
  -- Only what is still ours: a worker that slept through its lease must not renew the entry of the one that took over.
  local own = redis.pcall('XPENDING', queue, ARGV[1], id, id, 1, ARGV[2])
  if own.err or #own == 0 then
    lost[#lost + 1] = held
  else
    redis.call('XCLAIM', queue, ARGV[1], ARGV[2], 0, id, 'JUSTID') -- JUSTID: the delivery count stays
  end
end
return lost
