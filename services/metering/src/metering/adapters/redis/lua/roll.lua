-- Gives an account the calendar of a new day or month; never an older one. KEYS: meta, outbox, due, account.
local A = decode(ARGV[1])
local now = enter(A[1])
if not now then return {'FENCED'} end
local raw = call('HGET', KEYS[4], 'c')
if not raw then return {'NOT_LOADED'} end
local old, new = decode(raw), A[2]
for i = 1, 8 do
  if new[i] < old[i] then return {'STALE'} end
end
call('HSET', KEYS[4], 'c', pack(new))
return {'ROLLED'}
