-- The rule of broker/bid.py over "num_jobs most_tokens free_tokens tokens_per_token_ahead look_tokens".
local function read_bid(text)
  local figures = {}
  for figure in string.gmatch(text, '%S+') do
    figures[#figures + 1] = tonumber(figure)
  end
  return figures
end

local function fits(bid, tokens, tokens_ahead, is_new)
  return tokens <= math.min(bid[2], bid[3] + tokens_ahead * bid[4]) or (is_new and tokens <= bid[5])
end
