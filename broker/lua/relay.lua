-- Tells an API process of events: {member:index, event, ...}.
local function relay_events(relay, fields, max_entries, expire_s)
  for first = 1, #fields, 4000 do -- Lua's stack holds some 8000 values
    local last = math.min(first + 3999, #fields)
    redis.call('XADD', relay, 'MAXLEN', '~', max_entries, '*', unpack(fields, first, last))
  end
  redis.call('EXPIRE', relay, expire_s)
end
