-- Moves a batch to another status, if it is in one of those that it may come from; sets fields with it.
-- KEYS  batch, open_batches, open_batches_of, ended_batches, webhooks, batch_totals
-- ARGV  batch_id, status, from (statuses between spaces), now_ms, is_end, has_webhook, field, value, ...
-- -> 1 when it is there by this call, else 0
local status = redis.call('HGET', KEYS[1], 'status')
if not status or not string.find(ARGV[3], ' ' .. status .. ' ', 1, true) then
  return 0
end
redis.call('HSET', KEYS[1], 'status', ARGV[2], ARGV[2] .. '_at', math.floor(ARGV[4] / 1000))
for each = 7, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[each], ARGV[each + 1])
end
if ARGV[5] == '1' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('ZADD', KEYS[4], ARGV[4], ARGV[1])
  redis.call('HINCRBY', KEYS[6], 'batches:' .. ARGV[2], 1)
  if ARGV[6] == '1' then
    redis.call('ZADD', KEYS[5], ARGV[4], ARGV[1])
  end
end
return 1
