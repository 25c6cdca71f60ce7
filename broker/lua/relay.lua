-- An event as messages.RelayedEvent: msgpack's [member, index, event]. Events come with their version byte before them.
local function relayed_event(member, index, event)
  local size = #member
  return '\147\218' .. string.char(math.floor(size / 256), size % 256) .. member
    .. '\206' .. string.char(math.floor(index / 16777216) % 256, math.floor(index / 65536) % 256,
      math.floor(index / 256) % 256, index % 256)
    .. string.sub(event, 2)
end

-- Tells an API process of a list of such, in one entry: messages.RelayedEvents, in the version of `event`.
local function relay_events(relay, events, event, max_entries, expire_s)
  local size = #events
  local head = string.sub(event, 1, 1) .. '\145\221' .. string.char(math.floor(size / 16777216) % 256,
    math.floor(size / 65536) % 256, math.floor(size / 256) % 256, size % 256)
  redis.call('XADD', relay, 'MAXLEN', '~', max_entries, '*', 'events', head .. table.concat(events))
  redis.call('EXPIRE', relay, expire_s)
end
