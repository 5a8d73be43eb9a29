-- Gives a hold back; of an unknown call it leaves a tombstone, so that a stalled duplicate cannot be granted later.
-- KEYS: meta, outbox, due, account, bucket.
local A = decode(ARGV[1])
local field, holder, id = FIELD, HOLDER, ID
local generation, call_index, attempt, id_hour, account, forgets = A[1], A[2], A[3], A[4], A[5], A[6]

local now, sequence = enter(generation)
if not now then return {'FENCED'} end
local raw = call('HGET', KEYS[5], field)
local record = raw and decode(raw) or {'', holder, 0, 0}
local tail = sub(holder, 9)
if attempt == 0 then
  local found = find_call(record, tail, call_index)
  if found and (record[found + 2] == HELD or record[found + 2] == SUSPENSE) then
    return {'ATTEMPT', (found - RECORD - 1) / ENTRY + 1}
  end
  attempt = found and (found - RECORD - 1) / ENTRY + 1 or attempts(record) + 1
end
local entry = ensure_entry(record, attempt)
local state = record[entry + 2]
if state == SETTLED or state == POSTED then return {'ALREADY_SETTLED'} end
if state == RELEASED then return {'RELEASED', 0, sequence, 0} end

local raw_hold = id ~= '' and call('HGET', KEYS[4], 'h' .. id)
record[entry], record[entry + 1], record[entry + 2], record[entry + 3], record[entry + 4] = tail, call_index, RELEASED, 0, 0
if not raw_hold then
  save_record(KEYS[5], field, record, now, id_hour)
  return {'RELEASED', 1, sequence, 0}
end
local hold = decode(raw_hold)
sequence = sequence + 1
adjust(KEYS[4], hold, -hold[9], -hold[7], -hold[8], sequence)
if hold[9] == 1 then record[4] = 0 end
call('HDEL', KEYS[4], 'h' .. id)
call('ZREM', KEYS[3], id .. account)
-- A leg whose other leg was denied: the same call may be asked for again, under the same attempt.
if forgets == 1 and entry == #record - ENTRY + 1 then
  for i = #record, entry, -1 do record[i] = nil end
end
save_record(KEYS[5], field, record, now, id_hour)
emit(now, sequence, {3, account, now, hold[4]}, id, '')
return {'RELEASED', 0, sequence, hold[10]}
