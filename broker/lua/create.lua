-- A new request, if there is room for it: its record, its load, its reader's lease, one prefill job per choice.
-- KEYS  record, active_sizes, active_phases, reader_leases, bids, the prefill queue of each class, the decode queue of
--       each class, the local queue of each class, the images, then the token stream of every choice; the most urgent
--       class is first
-- ARGV  nonce, request, sizes, phase, request_id, number of its class, group, then how much room there is (broker/
--       backlog.py): jobs, tokens ahead, sequences ahead, sequences per token; lease_ms; 1 when decode workers may prefill it; then
--       the job of every choice, then the digest and the bytes of every image
-- -> {"created" | "in_use" | a reason of broker/backlog.py, per class its prefill jobs, their prompt tokens and the
--     decode jobs that nobody has taken, the decode jobs that somebody has}; the figures are those before the creation
-- include now
-- include fits
local NUM_CLASSES, FIRST_QUEUE, FIRST_JOB, MOST_READ = 3, 5, 14, 64

-- The queue itself is the count, and not a counter beside it: nothing can make it drift. Of a long one the oldest and
-- the newest jobs are read, and those between are taken for their mean.
local function prompt_tokens(queue, num_jobs)
  local entries = redis.call('XRANGE', queue, '-', '+', 'COUNT', num_jobs > 2 * MOST_READ and MOST_READ or num_jobs)
  if num_jobs > 2 * MOST_READ then
    for _, entry in ipairs(redis.call('XREVRANGE', queue, '+', '-', 'COUNT', MOST_READ)) do
      entries[#entries + 1] = entry
    end
  end
  local members, tokens = {}, 0
  for number, entry in ipairs(entries) do
    members[number] = entry[2][2]
  end
  for _, sizes in ipairs(redis.call('HMGET', KEYS[2], unpack(members))) do
    tokens = tokens + (sizes and tonumber(string.match(sizes, '^%d+')) or 0)
  end
  return math.floor(tokens * num_jobs / #entries)
end

-- Whether a decode worker waits for such a prompt; its bid is then used up by one.
local function takes_bid(prompt, tokens_ahead)
  local bids = redis.call('HGETALL', KEYS[5])
  for at = 1, #bids, 2 do
    local until_ms, text = string.match(bids[at + 1], '^(%d+) (.*)$')
    local bid = read_bid(text)
    if tonumber(until_ms) < now_ms() then
      redis.call('HDEL', KEYS[5], bids[at])
    elseif fits(bid, prompt, tokens_ahead, true) then
      if bid[1] > 1 then
        local left = string.format('%.0f', bid[1] - 1)
        redis.call('HSET', KEYS[5], bids[at], until_ms .. ' ' .. left .. string.match(text, ' .*$'))
      else
        redis.call('HDEL', KEYS[5], bids[at])
      end
      return true
    end
  end
  return false
end

local images = FIRST_QUEUE + 3 * NUM_CLASSES + 1
local first_tokens = images
local num_choices, class = #KEYS - first_tokens, tonumber(ARGV[6])
local room_jobs, room_tokens = tonumber(ARGV[8]), tonumber(ARGV[9])
local room_sequences, sequences_per_token = tonumber(ARGV[10]), tonumber(ARGV[11])
local answer, all_jobs, tokens_ahead, sequences_ahead, decoding = {''}, 0, 0, 0, 0
for number = 1, NUM_CLASSES do
  local jobs = redis.call('XLEN', KEYS[FIRST_QUEUE + number])
  local tokens = jobs > 0 and prompt_tokens(KEYS[FIRST_QUEUE + number], jobs) or 0
  local queue = KEYS[FIRST_QUEUE + NUM_CLASSES + number]
  local waiting, pending = redis.call('XLEN', queue), redis.pcall('XPENDING', queue, ARGV[7])
  if not pending.err then -- else there is no group yet, and nothing was taken
    waiting, decoding = math.max(0, waiting - pending[1]), decoding + pending[1]
  end
  decoding = decoding + redis.call('XLEN', KEYS[FIRST_QUEUE + 2 * NUM_CLASSES + number])
  all_jobs = all_jobs + jobs
  if number <= class then
    tokens_ahead = tokens_ahead + tokens
    sequences_ahead = sequences_ahead + jobs + waiting
  end
  answer[#answer + 1] = jobs
  answer[#answer + 1] = tokens
  answer[#answer + 1] = waiting
end
answer[#answer + 1] = decoding
sequences_ahead = sequences_ahead + decoding
if redis.call('EXISTS', KEYS[1]) == 1 then
  -- The same nonce is the same call, repeated because its answer was lost.
  answer[1] = redis.call('HGET', KEYS[1], 'nonce') == ARGV[1] and 'created' or 'in_use'
  return answer
end
if all_jobs + num_choices > room_jobs then
  answer[1] = 'jobs'
elseif tokens_ahead > room_tokens then
  answer[1] = 'tokens'
elseif sequences_ahead + num_choices > room_sequences + tokens_ahead * sequences_per_token then
  answer[1] = 'sequences'
else
  answer[1] = 'created'
  redis.call('HSET', KEYS[1], 'nonce', ARGV[1], 'request', ARGV[2], 'choices', num_choices, 'remaining', num_choices)
  redis.call('ZADD', KEYS[4], string.format('%.0f', now_ms() + ARGV[12]), ARGV[5])
  for image = FIRST_JOB + num_choices, #ARGV, 2 do
    redis.call('HSET', KEYS[images], ARGV[image], ARGV[image + 1])
  end
  for choice = 0, num_choices - 1 do
    local member = ARGV[5] .. ':' .. choice
    redis.call('DEL', KEYS[first_tokens + 1 + choice])
    redis.call('HSET', KEYS[1], 'hop:' .. choice, 1, 'epoch:' .. choice, 0)
    redis.call('HSET', KEYS[2], member, ARGV[3])
    redis.call('HSET', KEYS[3], member, ARGV[4])
    local is_local = ARGV[13] == '1' and takes_bid(tonumber(string.match(ARGV[3], '^%d+')), tokens_ahead)
    local queue = KEYS[FIRST_QUEUE + (is_local and 2 * NUM_CLASSES or 0) + class]
    redis.call('XADD', queue, '*', 'id', member, 'job', ARGV[FIRST_JOB + choice])
  end
end
return answer
