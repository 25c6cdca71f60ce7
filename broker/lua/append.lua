-- The events of one step, each through its own fence; one refused event does not touch the others.
-- KEYS  active_sizes, active_phases, reader_leases, then per item record, tokens
-- ARGV  keep_s, relay prefix, relay_max_entries, relay_expire_s,
--       then per item choice, member, epoch, index, 1 when terminal, event, api_id of the first reader or ''
-- -> per item 1 when the event stands in the stream, else 0
-- include end_choice
-- include relay
local relayed, readers_in_order = {}, {}
local answers = {}
for item = 1, (#ARGV - 4) / 7 do
  local at = 4 + (item - 1) * 7
  local choice, member, epoch, index = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4])
  local terminal, event = ARGV[at + 5] == '1', ARGV[at + 6]
  local record, tokens = KEYS[3 + item * 2 - 1], KEYS[3 + item * 2]
  local state = redis.call('HMGET', record, 'epoch:' .. choice, 'finished:' .. choice, 'readers')
  answers[item] = 0
  if state[1] == epoch then
    local length = redis.call('XLEN', tokens)
    if index < length then
      -- Only this epoch can have written what came after its take: a repeat, its answer was lost.
      answers[item] = 1
    elseif index == length and not state[2] then
      redis.call('XADD', tokens, (index + 1) .. '-0', 'event', event)
      answers[item] = 1
      for api_id in string.gmatch(state[3] or ARGV[at + 7], '%S+') do
        local events = relayed[api_id]
        if not events then
          events = {}
          relayed[api_id] = events
          readers_in_order[#readers_in_order + 1] = api_id
        end
        events[#events + 1] = relayed_event(member, index, event)
      end
      if terminal then
        end_choice(record, tokens, KEYS[1], KEYS[2], KEYS[3], choice, member, '1', ARGV[1])
      end
    end
  end
end
for _, api_id in ipairs(readers_in_order) do
  relay_events(ARGV[2] .. api_id, relayed[api_id], ARGV[10], ARGV[3], ARGV[4])
end
return answers
