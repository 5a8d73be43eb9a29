-- Keeps a hold longer. KEYS: meta, outbox, due, account, bucket.
local A = decode(ARGV[1])
local field, id = FIELD, ID
local generation, id_hour, account, ttl = A[1], A[2], A[3], A[4]

local now, sequence = enter(generation)
if not now then return {'FENCED'} end
local raw = call('HGET', KEYS[4], 'h' .. id)
local hold = raw and decode(raw)
if not hold or hold[3] ~= HELD then return {'CLOSED'} end
local expire = math.max(hold[5], now + ttl)
if expire == hold[5] then return {'EXTENDED', expire} end
sequence = sequence + 1
hold[5] = expire
call('HMSET', KEYS[4], 'h' .. id, pack(hold), 's', format('%.0f', sequence))
call('ZADD', KEYS[3], expire, id .. account)
local record = call('HGET', KEYS[5], field)
if record then
  record = decode(record)
  record[entry_of(record, hold[2]) + 3] = expire
  save_record(KEYS[5], field, record, now, id_hour)
end
emit(now, sequence, {6, account, now, expire}, id, '')
return {'EXTENDED', expire}
