"""The outbox read and trimmed, and holds whose time is over: the workers' side of Redis."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import msgspec
import redis.asyncio
from redis.exceptions import RedisError
from typing_extensions import override

from metering.adapters.redis import keys
from metering.adapters.redis.admission import call_keys
from metering.adapters.redis.connection import unavailable
from metering.adapters.redis.scripts import Script, ScriptCall, ScriptRunner
from metering.domain.accounts import AccountKey, partition_of
from metering.domain.enums import EventKind, Payer
from metering.domain.ledger import LedgerFacts
from metering.domain.licences import Licence, Watermark
from metering.domain.outbox import OutboxRecord
from metering.domain.reservations import HOUR_MS, id_hour
from metering.ports import DueHold, HoldExpiry, Outbox

_ID_BYTES: Final = 16
_words: Final = msgspec.msgpack.Decoder(list[int | str]).decode
_facts: Final = msgspec.msgpack.Decoder(LedgerFacts).decode
_encode: Final = msgspec.msgpack.Encoder().encode


@asynccontextmanager
async def as_unavailable() -> AsyncIterator[None]:
    """Turn what redis-py raises into our own error."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise unavailable("cannot be read") from error


class RedisOutbox(Outbox):
    """Reads streams by position; there are no consumer groups, because the position is Postgres' to say."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        """Read through a client."""
        self._client = client

    @override
    async def read(self, positions: Sequence[Watermark], *, count: int) -> list[OutboxRecord]:
        by_key = {keys.outbox_key(each.partition, each.generation): each for each in positions}
        if not by_key:
            return []
        streams: dict[Any, Any] = {key: f"{each.sequence}-0" for key, each in by_key.items()}
        async with as_unavailable():
            found = await self._client.xread(streams, count=count)
        return [_record(by_key[key], entry, fields) for key, entries in _pairs(found) for entry, fields in entries]

    @override
    async def trim(self, positions: Sequence[Watermark]) -> None:
        async with as_unavailable(), self._client.pipeline(transaction=False) as pipe:
            for each in positions:
                key = keys.outbox_key(each.partition, each.generation)
                pipe.xtrim(key, minid=f"{each.sequence + 1}-0", approximate=False)
            await pipe.execute()

    @override
    async def backlog(self, positions: Sequence[Watermark]) -> dict[int, int]:
        async with as_unavailable(), self._client.pipeline(transaction=False) as pipe:
            for each in positions:
                pipe.hmget(keys.meta_key(each.partition), "g", "n")
            replies = await pipe.execute()
        backlog = {}
        for each, (generation, last) in zip(positions, replies, strict=True):
            if generation is not None and int(generation) == each.generation:
                backlog[each.partition] = int(last) - each.sequence
        return backlog


class RedisHoldExpiry(HoldExpiry):
    """Finds due holds by the partition's sorted set, and moves each by script."""

    def __init__(self, client: redis.asyncio.Redis, runner: ScriptRunner) -> None:
        """Read through a client, write by scripts."""
        self._client = client
        self._runner = runner
        self._expire = Script.named("expire")

    @override
    async def due(self, licence: Licence, partitions: Sequence[int], *, count: int) -> list[DueHold]:
        async with as_unavailable(), self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            for partition in partitions:
                pipe.hget(keys.meta_key(partition), "t")
            (seconds, micros), *seen = await pipe.execute()
        clock_ms = seconds * 1_000 + micros // 1_000
        async with as_unavailable(), self._client.pipeline(transaction=False) as pipe:
            for partition, seen_ms in zip(partitions, seen, strict=True):
                key = keys.due_key(partition, licence.generations[partition])
                # The partition's own time, which a step of the clock does not take back.
                pipe.zrangebyscore(key, "-inf", max(clock_ms, int(seen_ms or 0)), start=0, num=count)
            replies: list[list[bytes]] = await pipe.execute()
        return [
            DueHold(keys.id_text(member[:_ID_BYTES]), AccountKey(member[_ID_BYTES:].decode()))
            for members in replies
            for member in members
        ]

    @override
    async def expire(self, holds: Sequence[DueHold], licence: Licence, *, follows: bool = False) -> list[Payer | None]:
        calls = [self._call(hold, licence, follows=follows) for hold in holds]
        replies = await self._runner.run(licence.identity, calls)
        if replies is None:
            return [None] * len(holds)
        return [
            Payer(reply[2]) if isinstance(reply, list) and reply[0] in {b"SUSPENDED", b"POSTED"} else None
            for reply in replies
        ]

    @override
    async def prune(self, licence: Licence, partitions: Sequence[int], *, before_ms: Mapping[int, int]) -> int:
        pruned = 0
        for partition in partitions:
            before = before_ms.get(partition, 0)
            pattern = keys.bucket_key(partition, licence.generations[partition], 0)[:-1] + b"*"
            async with as_unavailable():
                async for key in self._client.scan_iter(match=_escaped(pattern), count=1_000):
                    ended = (int(key.rpartition(b":")[2]) + 1) * HOUR_MS
                    last = int(await self._client.hget(key, "~a") or 0)
                    if max(ended, last) + HOUR_MS < before:
                        pruned += await self._client.unlink(key)
        return pruned

    def _call(self, hold: DueHold, licence: Licence, *, follows: bool) -> ScriptCall:
        hour = id_hour(hold.reservation_id)
        generation = licence.generations[partition_of(hold.account)]
        numbers = [generation, hour, hold.account, int(follows)]
        arguments = (_encode(numbers), b"", b"", b"", b"", b"", keys.id_bytes(hold.reservation_id))
        return ScriptCall(self._expire, call_keys(hold.account, licence, hour), arguments)


def _escaped(pattern: bytes) -> bytes:
    # Braces are plain in Redis' patterns; nothing else in our prefixes is special.
    return pattern


def _pairs(found: Any) -> list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]:
    if isinstance(found, dict):
        return [(key, batch) for key, batches in found.items() for batch in batches]
    return [(key, entries) for key, entries in found]


def _record(position: Watermark, entry: bytes, fields: dict[bytes, bytes]) -> OutboxRecord:
    kind, account, *words = _words(fields[b"f"])
    raw = fields[b"b"]
    payload = raw[_ID_BYTES:]
    return OutboxRecord(
        partition=position.partition,
        generation=position.generation,
        sequence=int(entry.partition(b"-")[0]),
        kind=EventKind(int(kind)),
        account=AccountKey(str(account)),
        reservation_id=UUID(bytes=raw[:_ID_BYTES]),
        numbers=tuple(word for word in words if isinstance(word, int)),
        rule="".join(word for word in words if isinstance(word, str)),
        facts=_facts(payload) if payload else None,
    )
