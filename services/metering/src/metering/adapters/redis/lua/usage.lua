-- Reads what is used of an account's limits now. Writes nothing. KEYS: meta, outbox, due, account.
-- Answers: time, config version, the account's last sequence, then per limit: id, start, end, counted, held, in suspense.
local A = decode(ARGV[1])
local now = enter(A[1])
if not now then return {'FENCED'} end
local fields, lists, holds, counted, ids = call('HGETALL', KEYS[4]), {}, {}, {}, {}
local calendar, version, last
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  local kind = sub(name, 1, 1)
  if name == 'c' then calendar = decode(value)
  elseif name == 'v' then version = tonumber(value)
  elseif name == 's' then last = tonumber(value)
  elseif kind == 'L' then lists[#lists + 1] = decode(value)
  elseif kind == 'h' then holds[#holds + 1] = decode(value)
  elseif kind == 'c' then counted[name] = tonumber(value)
  elseif kind == 'i' then ids[tonumber(sub(name, 2))] = value
  end
end
if not version then return {'NOT_LOADED'} end
if has_rolled(now, calendar) then return {'ROLL', now} end
local held, suspense = {}, {}
for _, hold in ipairs(holds) do
  local sums = hold[3] == HELD and held or suspense
  for i = HOLD + 1, #hold, COUNTER do
    sums[hold[i]] = (sums[hold[i]] or 0) + part(hold[i + 1], hold[9], hold[7], hold[8])
  end
end
local answer = {'USAGE', now, version, last or 0}
for _, list in ipairs(lists) do
  for i = 1, #list, LIMIT do
    local start, finish = window(list[i + 4], list[i + 5], now, calendar)
    local name, n = counter(list[i], start), #answer
    answer[n + 1], answer[n + 2], answer[n + 3] = ids[list[i]] or '', start, finish
    answer[n + 4], answer[n + 5], answer[n + 6] = counted[name] or 0, held[name] or 0, suspense[name] or 0
  end
end
return answer
