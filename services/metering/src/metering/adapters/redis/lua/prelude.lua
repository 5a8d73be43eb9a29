-- Shared by every script; put in front of each. What the keys hold, per partition N and generation G:
--
--   {pN}:m          hash   g generation, t highest time seen (ms), n sequence of the last outbox record
--   {pN}:G:o        stream the outbox; the id of a record is <sequence>-0
--   {pN}:G:d        zset   what falls due, by time: reservation id .. account key
--   {pN}:G:a:<acct> hash   v config version, l loading until, s last sequence, c calendar, p plan,
--                          La / Lo:<owner> / Lg:<agent> limits, c<slot>:<start> counters, w<slot> known windows, i<slot> limit ids,
--                          h<reservation id> open holds and holds in suspense
--   {pN}:G:i:<hour> hash   operation records whose ids are of that hour; ~a last late write
--
-- ARGV of scripts about a call: 1 arguments (msgpack: numbers and texts), 2 payload of the outbox record, 3 record known
-- from Postgres or '', 4 operation field, 5 body hash, 6 holder, 7 reservation id. Bytes stand apart, because Redis'
-- cmsgpack does not read msgpack's binary type.
--
-- Amounts are whole numbers below 2^53, which doubles hold exactly; they are written with %.0f or cmsgpack (which writes
-- whole numbers as integers), never with tostring or '..', which keep 14 digits.
local call, floor, format, sub = redis.call, math.floor, string.format, string.sub
local FIELD, BODY, HOLDER, ID = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local pack, decode = cmsgpack.pack, cmsgpack.unpack

local HELD, SETTLED, RELEASED, SUSPENSE, POSTED = 1, 2, 3, 4, 5
-- Operation record: 1 body hash, 2 holder, 3 sequence that closed it, 0 while it is open, -1 if durable, 4 counted as a call or not, then per attempt:
-- holder's tail, call index, state, expiry while held else cost, tokens.
local RECORD, ENTRY = 4, 5
-- Limit: slot, operation, payers, unit, window, own calendar, hard, amount. Its id stands apart, in i<slot>: only denials
-- and readers need it.
local LIMIT = 8
-- Hold: 1 operation field, 2 attempt, 3 state, 4 reserved at, 5 due at, 6 granted output, 7 tokens, 8 cost, 9 calls,
-- 10 payer, 11 operation, 12 agent, 13 owner, 14 payer rule, 15 leg, then per counter: field, unit.
local HOLD, COUNTER = 15, 2
local HOUR, DAY = 3600000, 86400000

-- Returns the time and the last sequence, or nothing if the generation is another one. Time never goes back: a step of
-- the server's clock must not open a window again.
local function enter(generation)
  local meta = call('HMGET', KEYS[1], 'g', 't', 'n')
  if tonumber(meta[1] or -1) ~= generation then return nil end
  local time = call('TIME')
  local now, seen = time[1] * 1000 + floor(time[2] / 1000), tonumber(meta[2])
  if now < seen then now = seen end
  return now, tonumber(meta[3])
end

-- Appends a record to the outbox, and the account's and the partition's sequence with it.
-- Field f says kind, account and the script's own facts, field b the reservation and the payload as it came.
local function emit(now, sequence, facts, id, payload)
  call('XADD', KEYS[2], format('%.0f-0', sequence), 'f', pack(facts), 'b', id .. payload)
  call('HMSET', KEYS[1], 't', format('%.0f', now), 'n', format('%.0f', sequence))
end

-- Names a counter. Most limits of an account share their windows, and turning a number into text is what costs.
local starts_as_text = {}
local function counter(slot, start)
  local text = starts_as_text[start]
  if not text then
    text = format(':%d', start)
    starts_as_text[start] = text
  end
  return 'c' .. slot .. text
end

local function window(kind, own, at, calendar)
  if kind == 1 then
    local start = floor(at / 60000)
    return start, start + 1
  elseif kind == 2 then
    local start = floor(at / HOUR) * 60
    return start, start + 60
  end
  local i = own * 4 + (kind == 3 and 1 or 3)
  return calendar[i], calendar[i + 1]
end

local function has_rolled(now, calendar)
  local minute = now / 60000
  return minute >= calendar[2] or minute >= calendar[4] or minute >= calendar[6] or minute >= calendar[8]
end

-- Calls visit(limit list, index in it, scope, start, end) for each limit that applies to a call reserved at this time.
-- A window that is over by now and was a day or a month is not visited: its ledger is all that still counts.
local function each_limit(lists, operation, payer, at, calendar, visit)
  local payer_bit = 2 ^ (payer - 1)
  for scope = 1, 3 do
    local list = lists[scope]
    if list then
      for i = 1, #list, LIMIT do
        if (list[i + 1] == 0 or list[i + 1] == operation) and floor(list[i + 2] / payer_bit) % 2 == 1 then
          local start, finish = window(list[i + 4], list[i + 5], at, calendar)
          if start * 60000 <= at then visit(list, i, scope, start, finish) end
        end
      end
    end
  end
end

local function limit_lists(raw, first)
  return {raw[first] and decode(raw[first]), raw[first + 1] and decode(raw[first + 1]), raw[first + 2] and decode(raw[first + 2])}
end

-- Keeps the list of a limit's windows, and forgets those that closed more than an hour ago.
local function remember(account_key, slot, start, finish, now)
  local field = format('w%d', slot)
  local raw = call('HGET', account_key, field)
  local known, kept, dropped = raw and decode(raw) or {}, {}, {}
  for i = 1, #known, 2 do
    if known[i] == start then return end
    if known[i + 1] * 60000 + HOUR < now then
      dropped[#dropped + 1] = counter(slot, known[i])
    else
      kept[#kept + 1] = known[i]
      kept[#kept + 1] = known[i + 1]
    end
  end
  kept[#kept + 1] = start
  kept[#kept + 1] = finish
  if #dropped > 0 then call('HDEL', account_key, unpack(dropped)) end
  call('HSET', account_key, field, pack(kept))
end

local function part(unit, calls, tokens, cost)
  if unit == 1 then return calls elseif unit == 2 then return tokens end
  return cost
end

-- Adds to the counters that a hold stands in, and keeps the account's sequence if one is given. A counter whose window was
-- removed stays removed.
local function adjust(account_key, hold, calls, tokens, cost, sequence)
  local names, changes = {}, {}
  if sequence then changes[1], changes[2] = 's', format('%.0f', sequence) end
  for i = HOLD + 1, #hold, COUNTER do names[#names + 1] = hold[i] end
  local used = #names > 0 and call('HMGET', account_key, unpack(names)) or {}
  for j = 1, #names do
    if used[j] then
      local change = part(hold[HOLD + j * COUNTER], calls, tokens, cost)
      if change ~= 0 then
        changes[#changes + 1] = names[j]
        changes[#changes + 1] = format('%.0f', used[j] + change)
      end
    end
  end
  if #changes > 0 then call('HMSET', account_key, unpack(changes)) end
end

-- Finds an attempt of an operation record by holder and call index, newest first.
local function find_call(record, tail, call_index)
  for i = #record - ENTRY + 1, RECORD + 1, -ENTRY do
    if record[i] == tail and record[i + 1] == call_index then return i end
  end
  return nil
end

local function attempts(record) return (#record - RECORD) / ENTRY end

local function entry_of(record, attempt) return RECORD + (attempt - 1) * ENTRY + 1 end

-- Makes room for an attempt that was never seen, so that its number stands at its place.
local function ensure_entry(record, attempt)
  while attempts(record) < attempt do
    local i = #record
    record[i + 1], record[i + 2], record[i + 3], record[i + 4], record[i + 5] = '', -1, 0, 0, 0
  end
  return entry_of(record, attempt)
end

local function save_record(bucket, field, record, now, id_hour)
  if now >= (id_hour + 1) * HOUR then
    call('HMSET', bucket, field, pack(record), '~a', format('%.0f', now))
  else
    call('HSET', bucket, field, pack(record))
  end
end

-- An id whose hour is over by more than one may have been here and gone; only Postgres can tell.
local function may_be_forgotten(now, id_hour) return now > (id_hour + 2) * HOUR end

local function next_midnight(at) return (floor(at / DAY) + 1) * DAY end
