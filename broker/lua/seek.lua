-- A decode worker looks for prompts to prefill itself. Who waits first in a class of the prefill queue and fits moves to
-- the local queue; for what is left of the bid it stands in `bids`, where create.lua finds it.
-- KEYS  bids, active_sizes, then the prefill queue of each class and the local queue of each class, the most urgent first
-- ARGV  group, worker_id, bid, for how long it stands (ms), what comes before and after a request id in the key of its
--       token streams
-- -> per entry {number of its class, entry id, {field, value, ...}}
-- include now
-- include fits
local MOST_READ = 64
local num_classes = (#KEYS - 2) / 2
local bid, taken = read_bid(ARGV[3]), {}

-- The first entry that nobody has, and the prompt tokens of those before it, whose prefill is under way.
local function first_waiting(queue)
  local groups = redis.pcall('XINFO', 'GROUPS', queue)
  local last_id
  for _, row in ipairs(groups.err and {} or groups) do
    local group = {}
    for field = 1, #row, 2 do
      group[row[field]] = row[field + 1]
    end
    last_id = group.name == ARGV[1] and group['last-delivered-id'] or last_id
  end
  local entry = last_id and redis.call('XRANGE', queue, '(' .. last_id, '+', 'COUNT', 1)[1]
  if not entry then
    return nil
  end
  local members, tokens = {}, 0
  for _, before in ipairs(redis.call('XRANGE', queue, '-', '(' .. entry[1], 'COUNT', MOST_READ)) do
    members[#members + 1] = before[2][2]
  end
  if #members > 0 then
    for _, sizes in ipairs(redis.call('HMGET', KEYS[2], unpack(members))) do
      tokens = tokens + (sizes and tonumber(string.match(sizes, '^%d+')) or 0)
    end
  end
  return entry, tokens
end

-- What lies in the local queue: moved just now, or routed to somebody who is gone.
local function take_all()
  for class = 1, num_classes do
    local queue = KEYS[2 + num_classes + class]
    local streams = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'STREAMS', queue, '>')
    if streams and streams[1] then
      local entries = type(streams[1]) == 'table' and streams[1][2] or streams[2] -- fakeredis's answer is flat
      for _, entry in ipairs(entries) do
        taken[#taken + 1] = {class, entry[1], entry[2]}
        bid[1] = bid[1] - 1
      end
    end
  end
end

take_all() -- before anything is moved: it fails where there is no group yet
for class = 1, num_classes do
  local queue = KEYS[2 + class]
  while bid[1] > 0 do
    local entry, tokens_ahead = first_waiting(queue)
    local member = entry and entry[2][2]
    local sizes = member and redis.call('HMGET', KEYS[2], member)[1]
    if not sizes or not string.match(sizes, ' 0$') then
      break -- nobody waits, or its choice has ended, which whoever takes it will see, or it has images
    end
    local request_id, choice = string.match(member, '^(.*):(%d+)$')
    local tokens = tonumber(string.match(sizes, '^%d+')) + redis.call('XLEN', ARGV[5] .. request_id .. ARGV[6] .. choice)
    if not fits(bid, tokens, tokens_ahead, false) then
      break
    end
    redis.call('XDEL', queue, entry[1])
    redis.call('XADD', KEYS[2 + num_classes + class], '*', unpack(entry[2]))
    take_all()
  end
end
if bid[1] > 0 then
  local until_ms = string.format('%.0f', now_ms() + ARGV[4])
  redis.call('HSET', KEYS[1], ARGV[2], until_ms .. ' ' .. string.format('%.0f', bid[1]) .. string.match(ARGV[3], ' .*$'))
else
  redis.call('HDEL', KEYS[1], ARGV[2])
end
return taken
