-- Begins a generation of a partition: from here on scripts of every other one are refused. Only upward.
-- KEYS: meta. ARGV: generation, highest time known to Postgres (ms).
local call = redis.call
local generation = tonumber(call('HGET', KEYS[1], 'g') or -1)
if generation > tonumber(ARGV[1]) then return {'STALE', generation} end
local seen = tonumber(call('HGET', KEYS[1], 't') or 0)
local t = tonumber(ARGV[2])
if t < seen then t = seen end
call('DEL', KEYS[1])
call('HMSET', KEYS[1], 'g', ARGV[1], 't', string.format('%.0f', t), 'n', '0')
return {'OPEN'}
