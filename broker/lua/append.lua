-- The events of one step, each through its own fence; one refused event does not touch the others.
-- KEYS  active_sizes, active_phases, reader_leases, then per item record, tokens
-- ARGV  keep_s, relay prefix, relay_max_entries, relay_expire_s, number of items,
--       then per item choice, member, epoch, index, 1 when terminal, event, api_id of the first reader or '',
--       then per first reader api_id, number of its items, the relay entry that they make all together
-- -> per item 1 when the event stands in the stream, else 0
-- include end_choice
-- include relay
local num_items = tonumber(ARGV[5])
local answers = {}
local relayed, readers_in_order, is_usual = {}, {}, {} -- by reader: its items; all of them because they were its own
local epoch_fields, finished_fields = {}, {}

local function relay_to(api_id, item, as_first_reader)
  local items = relayed[api_id]
  if not items then
    items = {}
    relayed[api_id], is_usual[api_id] = items, true
    readers_in_order[#readers_in_order + 1] = api_id
  end
  items[#items + 1] = item
  is_usual[api_id] = is_usual[api_id] and as_first_reader
end

for item = 1, num_items do
  local at = 5 + (item - 1) * 7
  local choice, member, epoch, index = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4])
  local record, tokens = KEYS[2 + item * 2], KEYS[3 + item * 2]
  if not epoch_fields[choice] then
    epoch_fields[choice], finished_fields[choice] = 'epoch:' .. choice, 'finished:' .. choice
  end
  local state = redis.call('HMGET', record, epoch_fields[choice], finished_fields[choice], 'readers')
  answers[item] = 0
  if state[1] == epoch then
    local length = redis.call('XLEN', tokens)
    if index < length then
      -- Only this epoch can have written what came after its take: a repeat, its answer was lost.
      answers[item] = 1
    elseif index == length and not state[2] then
      redis.call('XADD', tokens, string.format('%d-0', index + 1), 'event', ARGV[at + 6])
      answers[item] = 1
      if state[3] then
        for api_id in string.gmatch(state[3], '%S+') do
          relay_to(api_id, item, false)
        end
      elseif ARGV[at + 7] ~= '' then
        relay_to(ARGV[at + 7], item, true)
      end
      if ARGV[at + 5] == '1' then
        end_choice(record, tokens, KEYS[1], KEYS[2], KEYS[3], choice, member, '1', ARGV[1])
      end
    end
  end
end

-- The entry is there already where nobody was refused and nobody else came to read, which is nearly always.
local num_of, entry_of = {}, {}
for at = 6 + num_items * 7, #ARGV, 3 do
  num_of[ARGV[at]], entry_of[ARGV[at]] = tonumber(ARGV[at + 1]), ARGV[at + 2]
end
for _, api_id in ipairs(readers_in_order) do
  local entry = entry_of[api_id]
  if not is_usual[api_id] or num_of[api_id] ~= #relayed[api_id] then
    local events = {}
    for number, item in ipairs(relayed[api_id]) do
      local at = 5 + (item - 1) * 7
      events[number] = relayed_event(ARGV[at + 2], tonumber(ARGV[at + 4]), ARGV[at + 6])
    end
    entry = relay_entry(events, ARGV[11])
  end
  add_to_relay(ARGV[2] .. api_id, entry, ARGV[3], ARGV[4])
end
return answers
