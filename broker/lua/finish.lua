-- Ends a choice from outside the workers: raises the epoch, so that whoever works on it is refused from now on.
-- KEYS  record, tokens, active_sizes, active_phases, cancels channel, reader_leases
-- ARGV  nonce, choice, member, event, keep_s, relay prefix, relay_max_entries, relay_expire_s,
--       api_id of the first reader, or '' when the event is not to be relayed
-- -> 1 when this call ended the choice, else 0
-- include end_choice
-- include relay
local choice, member = ARGV[2], ARGV[3]
local state = redis.call('HMGET', KEYS[1], 'epoch:' .. choice, 'finished:' .. choice)
if not state[1] then
  return 0
end
if state[2] then
  -- The same nonce is the same call, repeated because its answer was lost.
  return state[2] == ARGV[1] and 1 or 0
end
local index = redis.call('XLEN', KEYS[2])
redis.call('HINCRBY', KEYS[1], 'epoch:' .. choice, 1)
redis.call('XADD', KEYS[2], (index + 1) .. '-0', 'event', ARGV[4])
end_choice(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[6], choice, member, ARGV[1], ARGV[5])
if ARGV[9] ~= '' then
  local entry = relay_entry({relayed_event(member, index, ARGV[4])}, ARGV[4])
  for api_id in string.gmatch(redis.call('HGET', KEYS[1], 'readers') or ARGV[9], '%S+') do
    add_to_relay(ARGV[6] .. api_id, entry, ARGV[7], ARGV[8])
  end
end
redis.call('PUBLISH', KEYS[5], member)
return 1
