-- Stops admission of an account for a moment, so that its counters can be folded from the ledger.
-- KEYS: meta, outbox, due, account. ARGV: arguments.
local A = decode(ARGV[1])
local now = enter(A[1])
if not now then return {'FENCED'} end
local known = call('HMGET', KEYS[4], 'v', 's', 'c')
if known[1] and tonumber(known[1]) >= A[2] then return {'LOADED', tonumber(known[1])} end
call('HSET', KEYS[4], 'l', format('%.0f', now + A[3]))
return {'LOADING', now, tonumber(known[2] or 0)}
