-- Puts the truth in the place of a hold, of a suspense, or of nothing that is known; or keeps the hold in suspense.
-- KEYS: meta, outbox, due, account, bucket.
local A = decode(ARGV[1])
local field, body, holder, id = FIELD, BODY, HOLDER, ID
local generation, call_index, attempt, id_hour, account = A[1], A[2], A[3], A[4], A[5]
local agent, owner, operation, payer, rule = A[6], A[7], A[8], A[9], A[10]
local tokens, cost, held_tokens, held_cost = A[11], A[12], A[13], A[14]
local is_final, in_suspense, reserved_at, is_checked, leg = A[15], A[16], A[17], A[18], A[19]

local now, sequence = enter(generation)
if not now then return {'FENCED'} end

local raw_hold = call('HGET', KEYS[4], 'h' .. id)
local raw = call('HGET', KEYS[5], field)
if not raw and ARGV[3] ~= '' then raw = ARGV[3] end
if not raw and not raw_hold and is_checked == 0 and may_be_forgotten(now, id_hour) then return {'CHECK'} end
local record = raw and decode(raw) or {body, holder, 0, 0}
local entry = ensure_entry(record, attempt)
if record[1] == '' then record[1] = body end
local state = record[entry + 2]

if not raw_hold and (state == SETTLED or (state == POSTED and in_suspense == 1)) then
  return {'REPEAT', sequence, record[entry + 3], record[entry + 4]}
end

local hold = raw_hold and decode(raw_hold)
if hold and hold[3] == SUSPENSE and in_suspense == 1 then return {'REPEAT', sequence, hold[8], hold[7]} end
local was_posted = state == POSTED
if not hold then
  -- Lost, released or posted: what it once held is no longer in the counters, unless it was posted.
  if reserved_at > now or reserved_at == 0 then reserved_at = now end
  local calls = record[4] == 1 and 0 or 1
  hold = {field, attempt, state, reserved_at, 0, 0, 0, 0, 0, payer, operation, agent, owner, rule, leg}
  if was_posted then hold[7], hold[8] = record[entry + 4], record[entry + 3] end
  local known = call('HMGET', KEYS[4], 'c', 'La', 'Lo:' .. owner, 'Lg:' .. agent)
  if known[1] then
    each_limit(limit_lists(known, 2), operation, payer, reserved_at, decode(known[1]), function(list, i, scope, start, finish)
      local name, n = counter(list[i], start), #hold
      if finish * 60000 + HOUR >= now then
        if call('HSETNX', KEYS[4], name, '0') == 1 then remember(KEYS[4], list[i], start, finish, now) end
        hold[n + 1], hold[n + 2] = name, list[i + 3]
      end
    end)
  end
  held_cost = was_posted and hold[8] or held_cost
  if calls == 1 then
    adjust(KEYS[4], hold, 1, 0, 0)
    hold[9] = 1
  end
else
  held_tokens, held_cost = hold[7], hold[8]
end
record[4] = 1

sequence = sequence + 1
if record[entry] == '' then record[entry], record[entry + 1] = sub(holder, 9), call_index end
if in_suspense == 1 then
  local due = next_midnight(hold[4])
  adjust(KEYS[4], hold, 0, held_tokens - hold[7], held_cost - hold[8], sequence)
  hold[3], hold[5], hold[7], hold[8] = SUSPENSE, due, held_tokens, held_cost
  call('HSET', KEYS[4], 'h' .. id, pack(hold))
  call('ZADD', KEYS[3], due, id .. account)
  record[entry + 2], record[entry + 3], record[entry + 4] = SUSPENSE, held_cost, held_tokens
  save_record(KEYS[5], field, record, now, id_hour)
  emit(now, sequence, {4, account, now, hold[4], due, hold[6], held_tokens, held_cost, hold[9]}, id, ARGV[2])
  return {'SETTLED', sequence, 0}
end
adjust(KEYS[4], hold, 0, tokens - hold[7], cost - hold[8], sequence)
call('HDEL', KEYS[4], 'h' .. id)
call('ZREM', KEYS[3], id .. account)
record[entry + 2], record[entry + 3], record[entry + 4] = SETTLED, cost, tokens
if is_final == 1 then record[3] = sequence end
save_record(KEYS[5], field, record, now, id_hour)
local overrun = math.max(0, cost - held_cost)
emit(now, sequence, {2, account, now, hold[4], hold[9], overrun, was_posted and 1 or 0, hold[14]}, id, ARGV[2])
return {'SETTLED', sequence, overrun}
