-- Records what became of a line, once: by whoever comes first, and while the batch is in progress.
-- KEYS  batch, shard_rows, done_shards, batch_totals
-- ARGV  line, shard, outcome (completed or failed), row
-- -> 1 when this call recorded it, else 0
if redis.call('HGET', KEYS[1], 'status') ~= 'in_progress'
  or redis.call('SISMEMBER', KEYS[3], ARGV[2]) == 1 or redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[4]) == 0 then
  return 0
end
redis.call('HINCRBY', KEYS[1], ARGV[3], 1)
redis.call('HINCRBY', KEYS[4], 'lines:' .. ARGV[3], 1)
return 1
