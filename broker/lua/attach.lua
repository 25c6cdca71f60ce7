-- An API process begins to read a request that runs already: from now on its relay gets the events too.
-- KEYS  record, reader_leases
-- ARGV  request_id, api_id, api_id of the first reader, lease_ms, '1' only if nobody reads it
-- -> 1, or 0 when the request is unknown or somebody reads it
-- include now
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 0
end
if ARGV[5] == '1' then
  local ends_ms = redis.call('ZSCORE', KEYS[2], ARGV[1])
  if not ends_ms or tonumber(ends_ms) > now_ms() then
    return 0
  end
end
-- The reader before stays: its connection may be half open, or it may be another client. Who came before that one hears
-- of events by looking.
local before = ''
for api_id in string.gmatch(redis.call('HGET', KEYS[1], 'readers') or ARGV[3], '%S+') do
  before = api_id ~= ARGV[2] and api_id or before
end
redis.call('HSET', KEYS[1], 'readers', before .. ' ' .. ARGV[2])
redis.call('ZADD', KEYS[2], 'XX', 'GT', string.format('%.0f', now_ms() + ARGV[4]), ARGV[1])
return 1
