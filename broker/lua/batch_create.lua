-- Makes a batch, unless its key has too many open ones.
-- KEYS  batch, open_batches, batches_of, open_batches_of
-- ARGV  batch_id, max_open, created_ms, Batch, status
-- -> 1, or 0 when there are too many
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 1  -- the same call, repeated because its answer was lost
end
if redis.call('ZCARD', KEYS[4]) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'batch', ARGV[4], 'status', ARGV[5], 'total', 0, 'completed', 0, 'failed', 0)
for each = 2, 4 do
  redis.call('ZADD', KEYS[each], ARGV[3], ARGV[1])
end
return 1
