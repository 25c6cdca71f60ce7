-- Delivers new entries of a queue's classes, as many as there are turns.
-- KEYS  the stream of each class, the most urgent first
-- ARGV  group, worker_id, then per turn the number of the class that is looked at first
-- -> per entry {number of its class, entry id, {field, value, ...}}
local taken, is_empty = {}, {}
for turn = 3, #ARGV do
  local order = {tonumber(ARGV[turn])}
  for class = 1, #KEYS do
    order[#order + 1] = class
  end
  local entry
  for _, class in ipairs(order) do
    if not entry and not is_empty[class] then
      local streams = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', 1, 'STREAMS', KEYS[class], '>')
      if streams and streams[1] then
        local entries = type(streams[1]) == 'table' and streams[1][2] or streams[2] -- fakeredis's answer is flat
        entry = entries[1]
        taken[#taken + 1] = {class, entry[1], entry[2]}
      else
        is_empty[class] = true
      end
    end
  end
  if not entry then
    break
  end
end
return taken
