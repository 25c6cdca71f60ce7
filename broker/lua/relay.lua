-- An event as messages.token_event.RelayedEvent: msgpack's [member, index, event]. Events come with their version byte before them.
local function relayed_event(member, index, event)
  local size = #member
  return '\147\218' .. string.char(math.floor(size / 256), size % 256) .. member
    .. '\206' .. string.char(math.floor(index / 16777216) % 256, math.floor(index / 65536) % 256,
      math.floor(index / 256) % 256, index % 256)
    .. string.sub(event, 2)
end

-- A list of such as messages.token_event.RelayedEvents, in the version of `event`.
local function relay_entry(events, event)
  local size = #events
  return string.sub(event, 1, 1) .. '\145\221' .. string.char(math.floor(size / 16777216) % 256,
    math.floor(size / 65536) % 256, math.floor(size / 256) % 256, size % 256) .. table.concat(events)
end

-- Tells an API process of an entry.
local function add_to_relay(relay, entry, max_entries, expire_s)
  redis.call('XADD', relay, 'MAXLEN', '~', max_entries, '*', 'events', entry)
  redis.call('EXPIRE', relay, expire_s)
end
