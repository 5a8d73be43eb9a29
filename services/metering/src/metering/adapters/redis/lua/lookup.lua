-- Tells how far an operation has come. Writes nothing. KEYS: meta, outbox, due, account, bucket.
local A = decode(ARGV[1])
local field, body = FIELD, BODY
local generation, id_hour = A[1], A[2]

local now = enter(generation)
if not now then return {'FENCED'} end
local raw = call('HGET', KEYS[5], field)
if not raw then return {may_be_forgotten(now, id_hour) and 'CHECK' or 'UNKNOWN'} end
local record = decode(raw)
if record[1] ~= '' and body ~= '' and record[1] ~= body then return {'REUSED'} end
if record[3] ~= 0 then return {'FINAL', record[3], attempts(record)} end
for i = RECORD + 1, #record, ENTRY do
  if record[i + 2] == HELD then return {'HELD', record[2], record[i + 3]} end
end
local last = #record > RECORD and record[#record - 2] or 0
return {'LAST', last}
