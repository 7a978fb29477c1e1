-- One gate in front of one legacy API, for all processes: a breaker with one probe, and a limit of requests in flight.
--
-- KEYS[1] hash of the breaker: failures in a row, shut_until (ms; a Retry-After), open_until (ms), probe, probe_until (ms)
-- KEYS[2] sorted set of the passes in flight, by the time (ms) at which the slot of a dead process is free again
-- ARGV[1] enter | ARGV[2] pass, ARGV[3] slots, ARGV[4] slot_ms, ARGV[5] failures_max
-- ARGV[1] leave | ARGV[2] pass, ARGV[3] "ok", "failed" or "neither", ARGV[4] retry_after_ms, ARGV[5] failures_max,
--                 ARGV[6] first_wait_ms, ARGV[7] longest_wait_ms
--
-- enter answers {0, 0} passed, {1, 0} passed as the probe, or {2, ms to wait}. Times are this server's own.

local state, flights = KEYS[1], KEYS[2]
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local pass = ARGV[2]

local function held(name)
  return tonumber(redis.call("HGET", state, name) or "0")
end

local function enter()
  local slots, slot_ms, failures_max = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
  redis.call("ZREMRANGEBYSCORE", flights, "-inf", now)
  local wait = math.max(held("shut_until"), held("open_until")) - now
  if wait > 0 then
    return { 2, wait }
  end
  local probing = held("failures") >= failures_max
  if probing and held("probe_until") > now then
    return { 2, math.min(held("probe_until") - now, 1000) }
  end
  if redis.call("ZCARD", flights) >= slots then
    return { 2, 100 }
  end
  redis.call("ZADD", flights, now + slot_ms, pass)
  redis.call("PEXPIRE", flights, slot_ms * 2)
  if not probing then
    return { 0, 0 }
  end
  redis.call("HSET", state, "probe", pass, "probe_until", now + slot_ms)
  return { 1, 0 }
end

local function leave()
  local outcome, retry_after_ms, failures_max = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
  redis.call("ZREM", flights, pass)
  if redis.call("HGET", state, "probe") == pass then
    redis.call("HDEL", state, "probe", "probe_until")
  end
  if outcome == "ok" then
    redis.call("HDEL", state, "failures", "open_until")
  elseif outcome == "failed" and held("open_until") <= now then -- while it is open, late failures say nothing new
    local failures = redis.call("HINCRBY", state, "failures", 1)
    if failures >= failures_max then
      local doubled = tonumber(ARGV[6]) * 2 ^ math.min(failures - failures_max, 20)
      redis.call("HSET", state, "open_until", now + math.floor(math.min(doubled, tonumber(ARGV[7]))))
    end
  end
  if retry_after_ms > 0 then
    redis.call("HSET", state, "shut_until", math.max(held("shut_until"), now + retry_after_ms))
  end
  redis.call("PEXPIRE", state, 86400000 * 2)
  return { 0, 0 }
end

return ARGV[1] == "enter" and enter() or leave()
