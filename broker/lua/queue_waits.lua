-- What waits in queues: how many entries nobody has taken, and for how long the oldest of them has.
-- KEYS  queues
-- ARGV  group
-- -> per queue {entries that wait, age of the oldest (ms)}
-- include now
local answer = {}
for number, queue in ipairs(KEYS) do
  local groups, last_id, pending = redis.pcall('XINFO', 'GROUPS', queue), nil, 0
  for _, row in ipairs(groups.err and {} or groups) do -- an error: nothing was ever put there
    local group = {}
    for field = 1, #row, 2 do
      group[row[field]] = row[field + 1]
    end
    if group.name == ARGV[1] then
      last_id, pending = group['last-delivered-id'], group.pending
    end
  end
  local waiting = math.max(0, redis.call('XLEN', queue) - pending)
  local oldest = waiting > 0 and redis.call('XRANGE', queue, last_id and '(' .. last_id or '-', '+', 'COUNT', 1)[1]
  local put_ms = oldest and tonumber(string.match(oldest[1], '^%d+'))
  answer[number] = {waiting, put_ms and math.max(0, now_ms() - put_ms) or 0}
end
return answer
