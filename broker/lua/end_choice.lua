-- A choice has ended; with the last one of its request, the whole log of the request begins to expire. Only then: a
-- choice that ended long before the others is still part of the answer.
local function end_choice(record, tokens, active_sizes, active_phases, reader_leases, choice, member, mark, keep_s)
  redis.call('HSET', record, 'finished:' .. choice, mark)
  redis.call('HDEL', active_sizes, member)
  redis.call('HDEL', active_phases, member)
  if redis.call('HINCRBY', record, 'remaining', -1) <= 0 then
    redis.call('ZREM', reader_leases, string.match(member, '^(.*):%d+$'))
    redis.call('EXPIRE', record, keep_s)
    local stem = string.match(tokens, '^(.*:)%d+$') -- the streams of one request differ in the number at the end
    for other = 0, redis.call('HGET', record, 'choices') - 1 do
      redis.call('EXPIRE', stem .. other, keep_s)
    end
    redis.call('EXPIRE', string.gsub(stem, 'tokens:$', 'images'), 0) -- at once: nothing is computed any more
  end
end
