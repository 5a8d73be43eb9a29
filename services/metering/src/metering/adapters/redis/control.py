"""The store as a whole: identity, fitness, and putting back what was lost."""

from collections.abc import Mapping, Sequence
from typing import Final

import redis.asyncio
from typing_extensions import override

from metering.adapters.redis import keys
from metering.adapters.redis.admission import operation_record
from metering.adapters.redis.connection import ScriptConnection
from metering.adapters.redis.outbox import as_unavailable
from metering.adapters.redis.scripts import Script
from metering.domain.accounts import PARTITIONS, partition_of
from metering.domain.errors import EvictingStoreError
from metering.domain.licences import Licence, StoreIdentity
from metering.domain.outbox import OpenHold
from metering.domain.reservations import PriorOperation, id_hour
from metering.ports import StoreControl

_CHUNK: Final = 500


class RedisControl(StoreControl):
    """Cold paths; the identity is that of the scripts' own connection."""

    def __init__(self, connection: ScriptConnection, client: redis.asyncio.Redis) -> None:
        """Ask the scripts' connection whom it is to; do the rest through a client."""
        self._connection = connection
        self._client = client
        self._open = Script.named("open", has_prelude=False)

    @override
    async def identity(self) -> StoreIdentity:
        return await self._connection.identity()

    @override
    async def ensure_keeps_everything(self) -> None:
        policy = (await self._memory()).get("maxmemory_policy", "unknown")
        if policy != "noeviction":
            raise EvictingStoreError(
                f"Redis has maxmemory-policy {policy}; set it to noeviction: an evicted counter reads as unused."
            )

    @override
    async def memory_used(self) -> float:
        memory = await self._memory()
        bound = int(memory.get("maxmemory", "0"))
        return int(memory["used_memory"]) / bound if bound else 0.0

    @override
    async def is_open(self, licence: Licence) -> bool:
        async with as_unavailable(), self._client.pipeline(transaction=False) as pipe:
            for partition in range(PARTITIONS):
                pipe.hget(keys.meta_key(partition), "g")
            found = await pipe.execute()
        return [int(each or -1) for each in found] == list(licence.generations)

    @override
    async def restore(
        self,
        generations: Mapping[int, int],
        *,
        seen_ms: Mapping[int, int],
        operations: Sequence[PriorOperation],
        holds: Sequence[OpenHold],
    ) -> None:
        await self._clear(generations)
        for start in range(0, len(operations), _CHUNK):
            await self._put_operations(operations[start : start + _CHUNK], generations)
        for start in range(0, len(holds), _CHUNK):
            await self._put_holds(holds[start : start + _CHUNK], generations)
        async with as_unavailable(), self._client.pipeline(transaction=False) as pipe:
            for partition, generation in generations.items():
                # Plain EVAL: it runs once a generation, and a server that has just started knows no script.
                pipe.eval(self._open.text, 1, keys.meta_key(partition), generation, seen_ms.get(partition, 0))
            await pipe.execute()

    @override
    async def drop_other_generations(self, generations: Mapping[int, int]) -> None:
        stale: list[bytes] = []
        async with as_unavailable():
            async for key in self._client.scan_iter(match="{p*", count=1_000):
                stale += keys.generation_prefixes([key], dict(generations))
                if len(stale) >= _CHUNK:
                    await self._client.unlink(*stale)
                    stale.clear()
            if stale:
                await self._client.unlink(*stale)

    async def _clear(self, generations: Mapping[int, int]) -> None:
        """Delete what an interrupted rebuild left under these generations: restoring adds, and must not add twice."""
        stale: list[bytes] = []
        async with as_unavailable():
            async for key in self._client.scan_iter(match="{p*", count=1_000):
                partition, generation = keys.parse_prefix(key)
                if generation is not None and generation == generations.get(partition):
                    stale.append(key)
            for start in range(0, len(stale), _CHUNK):
                await self._client.unlink(*stale[start : start + _CHUNK])

    async def _put_operations(self, operations: Sequence[PriorOperation], generations: Mapping[int, int]) -> None:
        async with as_unavailable(), self._client.pipeline(transaction=False) as pipe:
            for each in operations:
                partition = partition_of(each.account)
                bucket = keys.bucket_key(partition, generations[partition], id_hour(each.request_id))
                pipe.hset(bucket, keys.operation_field(each.request_id, each.account), operation_record(each))
            await pipe.execute()

    async def _put_holds(self, holds: Sequence[OpenHold], generations: Mapping[int, int]) -> None:
        async with as_unavailable(), self._client.pipeline(transaction=False) as pipe:
            for hold in holds:
                partition = partition_of(hold.account)
                generation = generations[partition]
                raw_id = hold.reservation_id.bytes
                pipe.hset(keys.account_hash_key(hold.account, generation), b"h" + raw_id, _packed_hold(hold))
                pipe.zadd(keys.due_key(partition, generation), {raw_id + hold.account.encode(): hold.due_ms})
            await pipe.execute()

    async def has_append_only_file(self) -> bool:
        """Tell whether the server writes an append-only file."""
        async with as_unavailable():
            reply = await self._client.info("persistence")
        return bool(int(reply.get("aof_enabled", 0)))

    async def _memory(self) -> dict[str, str]:
        async with as_unavailable():
            reply = await self._client.info("memory")
        return {str(name): str(value) for name, value in reply.items()}


def _packed_hold(hold: OpenHold) -> bytes:
    facts = hold.facts
    return keys.pack_record(
        [
            keys.operation_field(facts.request_id, hold.account),
            facts.attempt,
            int(hold.state),
            hold.reserve_ms,
            hold.due_ms,
            hold.output_tokens,
            hold.tokens,
            hold.cost_nano_usd,
            hold.calls,
            facts.payer,
            facts.operation,
            facts.agent_id,
            facts.owner_id,
            facts.payer_rule,
            facts.leg,
        ]
    )
