-- What one API key has used: requests and tokens a minute, requests in flight. A meter is one number, the time at which
-- all of it is free again: a use moves it on by its share of the minute, and fits while it lies within a minute of now.
-- A request in flight is a lease. Once it has a record, the record alone tells whether it is over, whatever became of
-- the API process that held it.
-- KEYS  meters, leases, records; reserve: the request's record; leave: its token streams
-- ARGV  nonce, step, recheck_ms, then
--       enter    lease_ms, requests a minute, most in flight (0: no limit)
--       reserve  tokens a minute (0: no limit), tokens
--       leave    tokens a minute, tokens reserved, prompt tokens
-- -> enter, reserve: {reason, ms until it would fit}, reason "" when it fits, "in_use" when there is such a record
--    leave: 1 over, 0 the request goes on by itself
local MINUTE_MS, KEEP_S = 60000, 86400
local meters, leases, records = KEYS[1], KEYS[2], KEYS[3]
local nonce, step, recheck_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + time[2] / 1000

local function set_meter(name, full_ms)
  redis.call('HSET', meters, name, string.format('%.3f', full_ms))
  redis.call('EXPIRE', meters, KEEP_S)
end

-- The meter after `amount` of `limit` a minute more, and for how long it would not fit (ms, at most 0 when it does).
local function metered(name, amount, limit)
  local full_ms = math.max(tonumber(redis.call('HGET', meters, name) or 0), now_ms)
  full_ms = full_ms + amount * MINUTE_MS / limit
  return full_ms, full_ms - now_ms - MINUTE_MS
end

local function set_lease(name, ms)
  redis.call('ZADD', leases, string.format('%.0f', now_ms + ms), name)
  redis.call('EXPIRE', leases, KEEP_S)
end

local function is_running(record)
  return record and tonumber(redis.call('HGET', record, 'remaining') or 0) > 0
end

if step == 'enter' then
  if redis.call('ZSCORE', leases, nonce) then
    return {'', 0} -- a repeat, its answer was lost
  end
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', string.format('%.0f', now_ms))) do
    if is_running(redis.call('HGET', records, name)) then
      set_lease(name, recheck_ms)
    else
      redis.call('ZREM', leases, name)
      redis.call('HDEL', records, name)
    end
  end
  local limit, max_in_flight = tonumber(ARGV[5]), tonumber(ARGV[6])
  if max_in_flight > 0 and redis.call('ZCARD', leases) >= max_in_flight then
    return {'in_flight', 0}
  end
  if limit > 0 then
    local full_ms, wait_ms = metered('requests', 1, limit)
    if wait_ms > 0 then
      return {'requests', math.ceil(wait_ms)}
    end
    set_meter('requests', full_ms)
  end
  set_lease(nonce, tonumber(ARGV[4]))
  return {'', 0}
end

if step == 'reserve' then
  if redis.call('HEXISTS', records, nonce) == 1 then
    return {'', 0} -- a repeat
  end
  if redis.call('EXISTS', KEYS[4]) == 1 then
    return {'in_use', 0}
  end
  local limit = tonumber(ARGV[4])
  if limit > 0 then
    local full_ms, wait_ms = metered('tokens', tonumber(ARGV[5]), limit)
    if wait_ms > 0 then
      return {'tokens', math.ceil(wait_ms)}
    end
    set_meter('tokens', full_ms)
  end
  redis.call('HSET', records, nonce, KEYS[4])
  redis.call('EXPIRE', records, KEEP_S)
  set_lease(nonce, recheck_ms)
  return {'', 0}
end

local record = redis.call('HGET', records, nonce)
if is_running(record) then
  set_lease(nonce, recheck_ms)
  return 0
end
redis.call('ZREM', leases, nonce)
if redis.call('HDEL', records, nonce) == 1 then -- not so in a repeat
  local limit, unused = tonumber(ARGV[4]), tonumber(ARGV[5])
  if redis.call('EXISTS', record) == 1 then
    unused = unused - tonumber(ARGV[6])
    for stream = 4, #KEYS do
      unused = unused - redis.call('XLEN', KEYS[stream])
    end
  end
  local full_ms = redis.call('HGET', meters, 'tokens')
  if full_ms and limit > 0 and unused > 0 then
    set_meter('tokens', tonumber(full_ms) - unused * MINUTE_MS / limit)
  end
end
return 1
