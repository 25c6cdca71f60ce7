-- These requests have readers; each may go without one from now on for lease_ms. What has ended is not revived.
-- KEYS  reader_leases
-- ARGV  lease_ms, then every request_id
-- include now
local ends_ms = string.format('%.0f', now_ms() + ARGV[1])
for number = 2, #ARGV do
  redis.call('ZADD', KEYS[1], 'XX', 'GT', ends_ms, ARGV[number])
end
