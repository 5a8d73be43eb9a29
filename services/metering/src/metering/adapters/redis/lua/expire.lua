-- Moves a hold that is due on: into suspense at its estimate, and at the end of its day out of suspense into the ledger.
-- The platform's leg of a call follows the call's own leg (`follows`); one that falls due by itself belongs to a call whose
-- own leg was never taken, and is given back.
-- KEYS: meta, outbox, due, account, bucket.
local A = decode(ARGV[1])
local id = ID
local generation, id_hour, account, follows = A[1], A[2], A[3], A[4]

local now, sequence = enter(generation)
if not now then return {'FENCED'} end
local raw = call('HGET', KEYS[4], 'h' .. id)
if not raw then
  call('ZREM', KEYS[3], id .. account)
  return {'GONE'}
end
local hold = decode(raw)
if hold[5] > now and follows == 0 then
  call('ZADD', KEYS[3], hold[5], id .. account)
  return {'NOT_DUE', hold[5]}
end
sequence = sequence + 1
call('HSET', KEYS[4], 's', format('%.0f', sequence))
local record = call('HGET', KEYS[5], hold[1])
record = record and decode(record)
local entry = record and ensure_entry(record, hold[2])
local facts = {0, account, now, hold[4], 0, hold[6], hold[7], hold[8], hold[9]}
local state = hold[3]
if state == HELD and hold[15] == 1 and follows == 0 then
  adjust(KEYS[4], hold, -hold[9], -hold[7], -hold[8])
  call('HDEL', KEYS[4], 'h' .. id)
  call('ZREM', KEYS[3], id .. account)
  if entry then
    record[entry + 2], record[entry + 3], record[entry + 4] = RELEASED, 0, 0
    save_record(KEYS[5], hold[1], record, now, id_hour)
  end
  emit(now, sequence, {3, account, now, hold[4]}, id, '')
  return {'RELEASED', sequence, hold[10]}
elseif state == HELD then
  local due = next_midnight(hold[4])
  facts[1], facts[5] = 4, due
  hold[3], hold[5] = SUSPENSE, due
  call('HSET', KEYS[4], 'h' .. id, pack(hold))
  call('ZADD', KEYS[3], due, id .. account)
  if entry then record[entry + 2] = SUSPENSE end
  emit(now, sequence, facts, id, '')
else
  call('HDEL', KEYS[4], 'h' .. id)
  call('ZREM', KEYS[3], id .. account)
  if entry then record[entry + 2] = POSTED end
  facts[1] = 5
  emit(now, sequence, facts, id, '')
end
if entry then
  record[entry + 3], record[entry + 4] = hold[8], hold[7]
  save_record(KEYS[5], hold[1], record, now, id_hour)
end
return {state == HELD and 'SUSPENDED' or 'POSTED', sequence, hold[10]}
