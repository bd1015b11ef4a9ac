-- Counts one request in several windows: in all of them, or in none where one has no room left.
--
-- KEYS: one for each window. ARGV: for each key its strategy, amount, width in milliseconds, and cost.
-- Returns 1 or 0 (whether the request was counted), then for each key three whole numbers, as they are afterwards:
--   sliding: count of the window before, count of this window, milliseconds left of this window
--   fixed:   0, count, milliseconds left
--   moving:  milliseconds until the oldest request leaves, count, milliseconds until there is room (0: there is)
-- The time is this server's, so the clocks of its clients don't matter.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local allowed = 1
local windows = {}

local function numbers(text)
    local found = {}
    for word in string.gmatch(text or '', '%S+') do
        found[#found + 1] = tonumber(word)
    end
    return found
end

-- A value of another kind under one of our keys was put there by somebody else. It would fail this client's requests
-- until it is gone, and a script that fails is taken for a Redis that does. (PEXPIRE in the past deletes, and needs no
-- right that is not needed anyway.)
local function read(command, key, ...)
    local value = redis.pcall(command, key, ...)
    if type(value) == 'table' and value.err then
        redis.call('PEXPIRE', key, -1)
        value = redis.call(command, key, ...)
    end
    return value
end

for index, key in ipairs(KEYS) do
    local at = (index - 1) * 4
    local window = {
        key = key,
        strategy = ARGV[at + 1],
        amount = tonumber(ARGV[at + 2]),
        width = tonumber(ARGV[at + 3]),
        cost = tonumber(ARGV[at + 4]),
        before = 0,
        count = 0,
    }
    local width = window.width
    local used
    if window.strategy == 'moving' then
        local oldest = tonumber(read('LINDEX', key, 0))
        while oldest and oldest <= now - width do
            redis.call('LPOP', key)
            oldest = tonumber(redis.call('LINDEX', key, 0))
        end
        window.count = redis.call('LLEN', key)
        used = window.count
    elseif window.strategy == 'fixed' then
        local stored = numbers(read('GET', key))
        if stored[1] and now < stored[1] and stored[1] <= now + width then
            window.till, window.count = stored[1], stored[2]
        else
            window.till = now + width
        end
        used = window.count
    else
        window.slot = math.floor(now / width)
        local stored = numbers(read('GET', key))
        if stored[1] and stored[1] >= window.slot then
            window.before, window.count = stored[2], stored[3]
        elseif stored[1] == window.slot - 1 then
            window.before = stored[3]
        end
        window.till = (window.slot + 1) * width
        used = math.floor(window.before * (window.till - now) / width) + window.count
    end
    if used + window.cost > window.amount then
        allowed = 0
    end
    windows[index] = window
end

local reply = {allowed}
for _, window in ipairs(windows) do
    local key, width, cost = window.key, window.width, window.cost
    if allowed == 1 then
        window.count = window.count + cost
        if window.strategy == 'moving' then
            for first = 1, cost, 1000 do
                local times = {}
                for i = first, math.min(first + 999, cost) do
                    times[#times + 1] = string.format('%.0f', now)
                end
                redis.call('RPUSH', key, unpack(times))
            end
            redis.call('PEXPIRE', key, string.format('%.0f', width))
        elseif window.strategy == 'fixed' then
            local stored = string.format('%.0f %.0f', window.till, window.count)
            redis.call('SET', key, stored, 'PX', string.format('%.0f', window.till - now))
        else
            local stored = string.format('%.0f %.0f %.0f', window.slot, window.before, window.count)
            redis.call('SET', key, stored, 'PX', string.format('%.0f', window.till - now + width))
        end
    end
    if window.strategy == 'moving' then
        local oldest = tonumber(redis.call('LINDEX', key, 0))
        local excess = window.count + cost - window.amount
        local room = 0
        if allowed == 0 and excess > 0 and excess <= window.count then
            room = tonumber(redis.call('LINDEX', key, excess - 1)) + width - now
        end
        reply[#reply + 1] = oldest and oldest + width - now or 0
        reply[#reply + 1] = window.count
        reply[#reply + 1] = room
    else
        reply[#reply + 1] = window.before
        reply[#reply + 1] = window.count
        reply[#reply + 1] = window.till - now
    end
end
return reply
