-- Holds the worst case of a call on every limit that applies, and grants the largest output that fits.
-- KEYS: meta, outbox, due, account, bucket.
local A = decode(ARGV[1])
local field, body, holder, id = FIELD, BODY, HOLDER, ID
local generation, call_index, guess, id_hour, account = A[1], A[2], A[3], A[4], A[5]
local agent, owner, operation, payer, rule = A[6], A[7], A[8], A[9], A[10]
local input, fixed, least, most, whole, rest = A[11], A[12], A[13], A[14], A[15], A[16]
local ttl, attempts_max, is_checked, leg = A[17], A[18], A[19], A[20]

local now, sequence = enter(generation)
if not now then return {'FENCED'} end

local raw = call('HGET', KEYS[5], field)
if not raw and ARGV[3] ~= '' then raw = ARGV[3] end
if not raw and is_checked == 0 and may_be_forgotten(now, id_hour) then return {'CHECK'} end
local record = raw and decode(raw) or {body, holder, 0, 0}
local tail = sub(holder, 9)
if record[1] == '' then record[1] = body elseif record[1] ~= body then return {'REUSED'} end
if record[3] ~= 0 then return {'FINAL', record[3], attempts(record)} end

local found = find_call(record, tail, call_index)
if found and record[found + 2] ~= 0 then
  local attempt = (found - RECORD - 1) / ENTRY + 1
  if record[found + 2] ~= HELD then return {'CLOSED', record[found + 2]} end
  if attempt ~= guess then return {'ATTEMPT', attempt} end
  local hold = call('HMGET', KEYS[4], 'h' .. id, 'p')
  if not hold[1] then return {'CLOSED', 0} end
  local h = decode(hold[1])
  return {'GRANTED', attempt, h[6], h[8], h[5], h[4], sequence, hold[2] or ''}
end
for i = RECORD + 1, #record, ENTRY do
  if record[i + 2] == HELD and record[i] ~= tail then return {'IN_PROGRESS', math.max(0, record[i + 3] - now)} end
end
local attempt = attempts(record) + 1
if attempt > attempts_max then return {'ATTEMPTS'} end
if attempt ~= guess then return {'ATTEMPT', attempt} end

local known = call('HMGET', KEYS[4], 'v', 'l', 'c', 'p', 'La', 'Lo:' .. owner, 'Lg:' .. agent)
if not known[1] then return {'NOT_LOADED'} end
if known[2] and tonumber(known[2]) > now then return {'LOADING'} end
local calendar = decode(known[3])
if has_rolled(now, calendar) then return {'ROLL', now} end

local names, lists, at, scopes, starts, ends = {}, {}, {}, {}, {}, {}
each_limit(limit_lists(known, 5), operation, payer, now, calendar, function(list, i, scope, start, finish)
  local j = #names + 1
  names[j], lists[j], at[j], scopes[j], starts[j], ends[j] = counter(list[i], start), list, i, scope, start, finish
end)
local used = #names > 0 and call('HMGET', KEYS[4], unpack(names)) or {}

local calls = record[4] == 1 and 0 or 1
local function price(output) return output * whole + math.ceil(output * rest / 1000000) end
local granted, denied = most, {'DENIED', now}
for j = 1, #names do
  local list, i = lists[j], at[j]
  if list[i + 6] == 1 then
    local unit, amount, taken = list[i + 3], list[i + 7], tonumber(used[j] or 0)
    local room, needed = amount - taken, part(list[i + 3], calls, input + least, fixed + price(least))
    if needed > 0 and needed > room then
      local n = #denied
      denied[n + 1] = call('HGET', KEYS[4], format('i%d', list[i])) or ''
      denied[n + 2], denied[n + 3], denied[n + 4] = scopes[j], unit, list[i + 4]
      denied[n + 5], denied[n + 6], denied[n + 7], denied[n + 8] = list[i + 1], amount, taken, needed
      denied[n + 9] = ends[j]
    elseif unit == 2 then
      granted = math.min(granted, room - input)
    elseif unit == 3 and fixed + price(granted) > room then
      -- Division gives the neighbourhood; the exact comparison decides.
      local fit = floor((room - fixed) / (whole + rest / 1000000))
      while fixed + price(fit) > room do fit = fit - 1 end
      while fit < granted and fixed + price(fit + 1) <= room do fit = fit + 1 end
      granted = fit
    end
  end
end
if #denied > 2 then return denied end

local tokens, cost, expire = input + granted, fixed + price(granted), now + ttl
local hold = {field, attempt, HELD, now, expire, granted, tokens, cost, calls, payer, operation, agent, owner, rule, leg}
sequence = sequence + 1
local changes = {'s', format('%.0f', sequence)}
for j = 1, #names do
  local list, i, n = lists[j], at[j], #hold
  if not used[j] then remember(KEYS[4], list[i], starts[j], ends[j], now) end
  hold[n + 1], hold[n + 2] = names[j], list[i + 3]
  changes[#changes + 1] = names[j]
  changes[#changes + 1] = format('%.0f', (used[j] or 0) + part(list[i + 3], calls, tokens, cost))
end
changes[#changes + 1] = 'h' .. id
changes[#changes + 1] = pack(hold)
call('HMSET', KEYS[4], unpack(changes))
call('ZADD', KEYS[3], expire, id .. account)
local n = #record
record[n + 1], record[n + 2], record[n + 3], record[n + 4], record[n + 5] = tail, call_index, HELD, expire, 0
record[2], record[4] = holder, 1
save_record(KEYS[5], field, record, now, id_hour)
emit(now, sequence, {1, account, now, now, expire, granted, tokens, cost, calls}, id, ARGV[2])
return {'GRANTED', attempt, granted, cost, expire, now, sequence, known[4] or ''}
