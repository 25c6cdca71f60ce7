-- Ends every choice of a request that has not ended, from outside the workers, if the condition holds: `always`,
-- `unattached` (no other reader ever came), or `abandoned` (it went without a reader for too long).
-- KEYS  record, active_sizes, active_phases, reader_leases, cancels channel, then the token stream of every choice
-- ARGV  nonce, condition, request_id, event, keep_s, relay prefix, relay_max_entries, relay_expire_s,
--       api_id of the first reader or ''
-- -> the choices that this call ended
-- include now
-- include end_choice
-- include relay
local nonce, condition, request_id = ARGV[1], ARGV[2], ARGV[3]
local ended, open = {}, {}
for choice = 0, #KEYS - 6 do
  local state = redis.call('HMGET', KEYS[1], 'epoch:' .. choice, 'finished:' .. choice)
  if state[2] == nonce then
    ended[#ended + 1] = choice -- the same call, repeated because its answer was lost
  elseif state[1] and not state[2] then
    open[#open + 1] = choice
  end
end
local readers = redis.call('HGET', KEYS[1], 'readers')
if #open == 0 then
  redis.call('ZREM', KEYS[4], request_id) -- of a request that Redis has lost
elseif condition == 'unattached' and readers then
  return ended
elseif condition == 'abandoned' then
  local ends_ms = redis.call('ZSCORE', KEYS[4], request_id)
  if not ends_ms or tonumber(ends_ms) > now_ms() then
    return ended
  end
end
local events = {}
for _, choice in ipairs(open) do
  local tokens, member = KEYS[6 + choice], request_id .. ':' .. choice
  local index = redis.call('XLEN', tokens)
  redis.call('HINCRBY', KEYS[1], 'epoch:' .. choice, 1) -- whoever works on it is refused from now on
  redis.call('XADD', tokens, (index + 1) .. '-0', 'event', ARGV[4])
  events[#events + 1] = relayed_event(member, index, ARGV[4])
  redis.call('PUBLISH', KEYS[5], member)
  ended[#ended + 1] = choice
end
for _, choice in ipairs(open) do
  local member = request_id .. ':' .. choice
  end_choice(KEYS[1], KEYS[6 + choice], KEYS[2], KEYS[3], KEYS[4], choice, member, nonce, ARGV[5])
end
if #events > 0 then
  local entry = relay_entry(events, ARGV[4])
  for api_id in string.gmatch(readers or ARGV[9], '%S+') do
    add_to_relay(ARGV[6] .. api_id, entry, ARGV[7], ARGV[8])
  end
end
return ended
