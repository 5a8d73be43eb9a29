"""Accounts in Redis: loading, rolling the calendar, reading what is used."""

from typing import Any, Final

import msgspec
from typing_extensions import override

from metering.adapters.redis import keys
from metering.adapters.redis.scripts import Script, ScriptCall, ScriptRunner
from metering.domain.accounts import AccountKey, partition_of
from metering.domain.licences import Licence
from metering.domain.matching import by_list
from metering.domain.reservations import Fenced, NeedsAccount, NeedsCalendar
from metering.domain.windows import Calendar
from metering.ports import (
    AccountLoaded,
    AccountMoved,
    AccountReading,
    AccountSnapshot,
    CounterReading,
    CounterStore,
    LoadStarted,
)

_encode: Final = msgspec.msgpack.Encoder().encode
_READING_WORDS: Final = 6


class RedisCounterStore(CounterStore):
    """Each method is one script on one account's hash."""

    def __init__(self, runner: ScriptRunner) -> None:
        """Run on a runner."""
        self._runner = runner
        self._begin_load = Script.named("begin_load")
        self._load = Script.named("load")
        self._roll = Script.named("roll")
        self._usage = Script.named("usage")

    @override
    async def begin_load(
        self, account: AccountKey, licence: Licence, *, version: int, stand_still_ms: int
    ) -> LoadStarted | AccountLoaded | Fenced:
        reply = await self._run(
            self._begin_load, account, licence, _encode([_gen(account, licence), version, stand_still_ms])
        )
        if reply[0] == b"LOADING":
            return LoadStarted(reply[1], reply[2])
        return AccountLoaded(reply[1]) if reply[0] == b"LOADED" else Fenced()

    @override
    async def load(self, snapshot: AccountSnapshot, licence: Licence) -> AccountLoaded | AccountMoved | Fenced:
        account = snapshot.account
        head = [_gen(account, licence), snapshot.version, snapshot.sequence]
        counters = [
            number for limit, start, end, amount in snapshot.counters for number in (limit.slot, start, end, amount)
        ]
        arguments = [_encode(head), _encode(snapshot.calendar.flat()), snapshot.plan, _encode(counters)]
        for field, limits in by_list([limit for limit, _, _, _ in snapshot.counters]).items():
            arguments += [field.encode(), _encode([word for limit in limits for word in limit.packed()])]
            for limit in limits:
                arguments += [b"i%d" % limit.slot, limit.limit_id.encode()]
        reply = await self._run(self._load, account, licence, *arguments)
        if reply[0] == b"LOADED":
            return AccountLoaded(reply[1])
        return AccountMoved(reply[1]) if reply[0] == b"MOVED" else Fenced()

    @override
    async def roll(self, account: AccountKey, licence: Licence, calendar: Calendar) -> None:
        await self._run(self._roll, account, licence, _encode([_gen(account, licence), calendar.flat()]))

    @override
    async def read(
        self, account: AccountKey, licence: Licence
    ) -> AccountReading | NeedsAccount | NeedsCalendar | Fenced:
        reply = await self._run(self._usage, account, licence, _encode([_gen(account, licence)]))
        if reply[0] == b"USAGE":
            words = reply[4:]
            rows = (words[i : i + _READING_WORDS] for i in range(0, len(words), _READING_WORDS))
            counters = tuple(CounterReading(row[0].decode(), *row[1:]) for row in rows)
            return AccountReading(reply[1], reply[2], reply[3], counters)
        if reply[0] == b"ROLL":
            return NeedsCalendar(reply[1])
        return NeedsAccount() if reply[0] == b"NOT_LOADED" else Fenced()

    async def _run(self, script: Script, account: AccountKey, licence: Licence, *arguments: bytes) -> list[Any]:
        partition = partition_of(account)
        generation = licence.generations[partition]
        names = (
            keys.meta_key(partition),
            keys.outbox_key(partition, generation),
            keys.due_key(partition, generation),
            keys.account_hash_key(account, generation),
        )
        replies = await self._runner.run(licence.identity, [ScriptCall(script, names, arguments)])
        if replies is None:
            return [b"FENCED"]
        reply = replies[0]
        if isinstance(reply, Exception):
            raise reply
        answer: list[Any] = reply
        return answer


def _gen(account: AccountKey, licence: Licence) -> int:
    return licence.generations[partition_of(account)]
