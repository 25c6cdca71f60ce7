-- Takes over entries whose owner stopped renewing them, and forgets consumers that are gone for good. XAUTOCLAIM in
-- one step with what it lacks: the delivery count, and the same treatment of deleted entries on Redis 6.2 and 7.
-- KEYS  pulse, the stream of each class, the most urgent first
-- ARGV  group, worker_id, lease_ms, count, consumer_idle_ms, then "CLASS ENTRY_ID" of what the worker works on itself
-- -> per entry {number of its class, entry id, deliveries, {field, value, ...}}
-- include now
local taken, now = {}, now_ms()
-- Nobody beats, or somebody just began to: Redis was away, and who lives has had no chance to renew (heartbeat.lua).
local pulse = redis.call('HMGET', KEYS[1], 'beat_ms', 'rest_until_ms')
if pulse[1] and now - pulse[1] > ARGV[3] / 2 or pulse[2] and now < tonumber(pulse[2]) then
  return taken
end
local count, held = tonumber(ARGV[4]), {}
for number = 6, #ARGV do
  held[ARGV[number]] = true
end
for class = 1, #KEYS - 1 do
  local queue = KEYS[class + 1]
  local pending = redis.call('XPENDING', queue, ARGV[1], 'IDLE', ARGV[3], '-', '+', count - #taken + #ARGV - 5)
  for _, row in ipairs(pending) do
    local id, deliveries = row[1], row[4]
    local entries = redis.call('XRANGE', queue, id, id)
    if #taken == count or held[class .. ' ' .. id] then
      -- The next call's, or the worker's own.
    elseif #entries == 0 then
      redis.call('XACK', queue, ARGV[1], id)
    elseif #redis.call('XCLAIM', queue, ARGV[1], ARGV[2], ARGV[3], id) > 0 then
      taken[#taken + 1] = {class, id, deliveries + 1, entries[1][2]}
    end
  end
  -- Here and not in two steps: a consumer that is given an entry in between would take it to its grave.
  for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', queue, ARGV[1])) do
    local consumer = {}
    for field = 1, #row, 2 do
      consumer[row[field]] = row[field + 1]
    end
    if consumer.name ~= ARGV[2] and consumer.pending == 0 and consumer.idle > tonumber(ARGV[5]) then
      redis.call('XGROUP', 'DELCONSUMER', queue, ARGV[1], consumer.name)
    end
  end
end
return taken
