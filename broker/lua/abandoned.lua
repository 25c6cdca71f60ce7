-- The requests that have gone without a reader for too long, at most `count`.
-- KEYS  reader_leases
-- ARGV  count
-- include now
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now_ms()), 'LIMIT', 0, ARGV[1])
