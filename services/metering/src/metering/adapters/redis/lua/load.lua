-- Gives an account its limits and what is used of them: the ledger's fold, and the holds that stand here. Versions are
-- applied only upward, and only if nothing was written for the account since the fold.
-- KEYS: meta, outbox, due, account. ARGV: arguments, calendar, plan, counters, then pairs: field of a limit
-- list and list, field of a limit id and id.
local A = decode(ARGV[1])
local generation, version, expected, calendar, counters = A[1], A[2], A[3], decode(ARGV[2]), decode(ARGV[4])

local now = enter(generation)
if not now then return {'FENCED'} end
local known = call('HMGET', KEYS[4], 'v', 's')
if known[1] and tonumber(known[1]) >= version then return {'LOADED', tonumber(known[1])} end
if tonumber(known[2] or 0) ~= expected then return {'MOVED', tonumber(known[2] or 0)} end

local fields, stale, holds = call('HGETALL', KEYS[4]), {}, {}
for i = 1, #fields, 2 do
  local kind = sub(fields[i], 1, 1)
  if kind == 'h' then
    holds[fields[i]] = decode(fields[i + 1])
  elseif fields[i] ~= 's' then
    stale[#stale + 1] = fields[i]
  end
end
for i = 1, #stale, 1000 do call('HDEL', KEYS[4], unpack(stale, i, math.min(i + 999, #stale))) end

local lists = {}
call('HMSET', KEYS[4], 'v', format('%.0f', version), 'c', ARGV[2], 'p', ARGV[3])
for i = 5, #ARGV, 2 do
  if sub(ARGV[i], 1, 1) == 'L' then lists[ARGV[i]] = decode(ARGV[i + 1]) end
  call('HSET', KEYS[4], ARGV[i], ARGV[i + 1])
end
-- Counters arrive as slot, start, end, amount.
for i = 1, #counters, 4 do
  call('HSET', KEYS[4], counter(counters[i], counters[i + 1]), format('%.0f', counters[i + 3]))
  remember(KEYS[4], counters[i], counters[i + 1], counters[i + 2], now)
end
for field, hold in pairs(holds) do
  for i = #hold, HOLD + 1, -1 do hold[i] = nil end
  local applying = {lists['La'], lists['Lo:' .. hold[13]], lists['Lg:' .. hold[12]]}
  each_limit(applying, hold[11], hold[10], hold[4], calendar, function(list, i, scope, start, finish)
    local name, n = counter(list[i], start), #hold
    if finish * 60000 + HOUR < now then return end
    if call('HSETNX', KEYS[4], name, '0') == 1 then remember(KEYS[4], list[i], start, finish, now) end
    hold[n + 1], hold[n + 2] = name, list[i + 3]
  end)
  adjust(KEYS[4], hold, hold[9], hold[7], hold[8])
  call('HSET', KEYS[4], field, pack(hold))
end
return {'LOADED', version}
