-- The events of one step, each through its own fence; one refused event does not touch the others.
-- KEYS  active_sizes, active_phases, every relay, then per item record, tokens
-- ARGV  keep_s, relay_max_entries, relay_expire_s, number of relays,
--       then per item choice, member, epoch, index, 1 when terminal, number of its relay or 0, event
-- -> per item 1 when the event stands in the stream, else 0
local num_relays = tonumber(ARGV[4])
local relayed = {}
for relay = 1, num_relays do
  relayed[relay] = {}
end
local answers = {}
for item = 1, (#ARGV - 4) / 7 do
  local at = 4 + (item - 1) * 7
  local choice, member, epoch, index = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4])
  local terminal, relay, event = ARGV[at + 5] == '1', tonumber(ARGV[at + 6]), ARGV[at + 7]
  local record, tokens = KEYS[2 + num_relays + item * 2 - 1], KEYS[2 + num_relays + item * 2]
  local state = redis.call('HMGET', record, 'epoch:' .. choice, 'finished:' .. choice)
  answers[item] = 0
  if state[1] == epoch then
    local length = redis.call('XLEN', tokens)
    if index < length then
      -- Only this epoch can have written what came after its take: a repeat, its answer was lost.
      answers[item] = 1
    elseif index == length and not state[2] then
      redis.call('XADD', tokens, (index + 1) .. '-0', 'event', event)
      answers[item] = 1
      if relay > 0 then
        local fields = relayed[relay]
        fields[#fields + 1] = member .. ':' .. index
        fields[#fields + 1] = event
      end
      if terminal then
        redis.call('HSET', record, 'finished:' .. choice, '1')
        redis.call('HDEL', KEYS[1], member)
        redis.call('HDEL', KEYS[2], member)
        redis.call('EXPIRE', tokens, ARGV[1])
        if redis.call('HINCRBY', record, 'remaining', -1) <= 0 then
          redis.call('EXPIRE', record, ARGV[1])
        end
      end
    end
  end
end
for relay = 1, num_relays do
  local fields = relayed[relay]
  for first = 1, #fields, 4000 do -- Lua's stack holds some 8000 values
    local last = math.min(first + 3999, #fields)
    redis.call('XADD', KEYS[2 + relay], 'MAXLEN', '~', ARGV[2], '*', unpack(fields, first, last))
  end
  if #fields > 0 then
    redis.call('EXPIRE', KEYS[2 + relay], ARGV[3])
  end
end
return answers
