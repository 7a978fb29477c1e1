-- One gate in front of one legacy API, for all processes: a breaker with one probe, a limit of requests in flight, and
-- rates.
--
-- KEYS[1] hash of the breaker: failures and slows in a row, shut_until (ms; the API asked for patience),
--         open_until (ms), probe, probe_until (ms)
-- KEYS[2] sorted set of the passes in flight, by the time (ms) at which the slot of a dead process is free again
-- KEYS[3] sorted set of all passes of the longest span, by the time (ms) at which they were given back: a call arrives
--         at some moment before its answer does, so only an answer that is a span old makes room for another call.
--         Those in flight stand in the future, as in KEYS[2], and so count in every span.
-- ARGV[1] enter | ARGV[2] pass, ARGV[3] slots, ARGV[4] slot_ms, ARGV[5] failures_max, then for each rate:
--                 calls, span_ms, 1 if its spans go by the clock
-- ARGV[1] leave | ARGV[2] pass, ARGV[3] "ok", "failed", "slow" or "neither", ARGV[4] retry_after_ms,
--                 ARGV[5] failures_max, ARGV[6] first_wait_ms, ARGV[7] longest_wait_ms
--
-- enter answers {0, 0, 0} passed, {1, 0, 0} passed as the probe, or {2, ms to wait, 1 if it is merely full}.
-- Times are this server's own.

local state, flights, calls = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local pass = ARGV[2]
local RATES = 6

local function held(name)
  return tonumber(redis.call("HGET", state, name) or "0")
end

local function doubled(count, first, longest)
  return math.floor(math.min(tonumber(first) * 2 ^ math.min(count - 1, 20), tonumber(longest)))
end

-- How long until one more call fits into every span; and the longest span.
local function pace()
  local wait, longest = 0, 0
  for rate = RATES, #ARGV, 3 do
    local most, span, by_clock = tonumber(ARGV[rate]), tonumber(ARGV[rate + 1]), ARGV[rate + 2] == "1"
    local from = by_clock and now - now % span or now - span
    local taken = redis.call("ZCOUNT", calls, "(" .. from, "+inf")
    longest = math.max(longest, span)
    if taken >= most and by_clock then
      wait = math.max(wait, from + span - now)
    elseif taken >= most then
      local leaves = redis.call("ZRANGEBYSCORE", calls, "(" .. from, "+inf", "WITHSCORES", "LIMIT", taken - most, 1)
      wait = math.max(wait, math.min(tonumber(leaves[2]), now) + span - now)
    end
  end
  return wait, longest
end

local function enter()
  local slots, slot_ms, failures_max = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
  redis.call("ZREMRANGEBYSCORE", flights, "-inf", now)
  local wait = math.max(held("shut_until"), held("open_until")) - now
  if wait > 0 then
    return { 2, wait, 0 }
  end
  local probing = held("failures") >= failures_max
  if probing and held("probe_until") > now then
    return { 2, math.min(held("probe_until") - now, 1000), 0 }
  end
  if redis.call("ZCARD", flights) >= slots then
    return { 2, 100, 1 }
  end
  if #ARGV >= RATES then
    local paced, longest = pace()
    if paced > 0 then
      return { 2, paced, 1 }
    end
    redis.call("ZREMRANGEBYSCORE", calls, "-inf", now - longest)
    redis.call("ZADD", calls, now + slot_ms, pass)
    redis.call("PEXPIRE", calls, longest + slot_ms)
  end
  redis.call("ZADD", flights, now + slot_ms, pass)
  redis.call("PEXPIRE", flights, slot_ms * 2)
  if not probing then
    return { 0, 0, 0 }
  end
  redis.call("HSET", state, "probe", pass, "probe_until", now + slot_ms)
  return { 1, 0, 0 }
end

local function leave()
  local outcome, wait_ms, failures_max = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
  redis.call("ZREM", flights, pass)
  redis.call("ZADD", calls, "XX", now + 1, pass)
  if redis.call("HGET", state, "probe") == pass then
    redis.call("HDEL", state, "probe", "probe_until")
  end
  if outcome == "ok" then
    redis.call("HDEL", state, "failures", "slows", "open_until")
  elseif outcome == "slow" and wait_ms == 0 and held("shut_until") <= now then -- it says no word of how long
    wait_ms = doubled(redis.call("HINCRBY", state, "slows", 1), ARGV[6], ARGV[7])
  elseif outcome == "failed" and held("open_until") <= now then -- while it is open, late failures say nothing new
    local failures = redis.call("HINCRBY", state, "failures", 1)
    if failures >= failures_max then
      redis.call("HSET", state, "open_until", now + doubled(failures - failures_max + 1, ARGV[6], ARGV[7]))
    end
  end
  if wait_ms > 0 then
    redis.call("HSET", state, "shut_until", math.max(held("shut_until"), now + wait_ms))
  end
  redis.call("PEXPIRE", state, 86400000 * 2)
  return { 0, 0, 0 }
end

return ARGV[1] == "enter" and enter() or leave()
