-- The workers whose lease stands by Redis's own clock; the others are forgotten.
-- KEYS  workers, worker_leases
-- -> {worker_id, status, ...}
local time = redis.call('TIME')
local now_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
for _, worker_id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms)) do
  redis.call('ZREM', KEYS[2], worker_id)
  redis.call('HDEL', KEYS[1], worker_id)
end
return redis.call('HGETALL', KEYS[1])
