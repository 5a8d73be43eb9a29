"""What a lease takes when there are a million keys, against a thousand: in a suite of its own, on one database."""

import random
from datetime import timedelta
from statistics import median
from typing import Final

import asyncpg

from bench.companions import grpc_of
from bench.jobs import LeasesJob
from bench.room import Room
from bench.rows import Row, row_of
from bench.suite import Suite
from keyvault.adapters.root_keys.file import read_root_key
from services.keyvault.tests.integration.bulk_keys import agent_of, keyring_of, load_keys
from testkit.stack.stack import Stack, StackOptions
from testkit.waiting import eventually

_FEW: Final = 1_000
_MANY: Final = 1_000_000
_MANY_QUICK: Final = 40_000
_QUICK_SECONDS: Final = 5
_BATCH: Final = 16
_AGENTS_MAX: Final = 20_000
"""Agents are drawn from all of them: nothing that is cached covers them."""
_PATIENCE: Final = timedelta(minutes=10)
_IS_SIGNED: Final = "SELECT max(size) = (SELECT last_index FROM audit_head) FROM audit_checkpoints"


async def measure_growth(room: Room, _suite: Suite) -> list[Row]:
    """Lease from few keys, load many, and lease from those."""
    many = _MANY if room.pace.seconds > _QUICK_SECONDS else _MANY_QUICK
    async with Stack(room.folder / "growth", options=StackOptions(log_level="warning", is_kept=False)) as stack:
        root = read_root_key(stack.directory / "root.key")
        ring = await keyring_of(stack.keyvault_dsn, deployment="embedded", root=root, patience=_PATIENCE)
        await load_keys(stack.keyvault_dsn, ring, _FEW)
        few_ms = await _lease_ms(room, stack, _FEW)
        await load_keys(stack.keyvault_dsn, ring, many, first=_FEW)
        many_ms = await _lease_ms(room, stack, many)
    return [
        row_of(
            "growth.lease_1m",
            [each / median(few_ms) for each in many_ms],
            unit="ratio",
            note=f"p50 of a batch of {_BATCH} cold leases at {many:,} keys / at {_FEW:,}: {median(many_ms):.2f} / "
            f"{median(few_ms):.2f} ms; agents drawn from all",
        )
    ]


async def _lease_ms(room: Room, stack: Stack, count: int) -> list[float]:
    numbers = random.Random(count).sample(range(count), min(count, _AGENTS_MAX))
    server = grpc_of(stack.service("keyvault").grpc_port, stack.client_tls("router"))
    await _settled(stack)
    leases = await room.driver(LeasesJob(server, [agent_of(number) for number in numbers], _BATCH))
    await leases.run(in_flight=1, seconds=room.pace.warm_seconds)
    return [(await leases.run(in_flight=1, seconds=room.pace.seconds)).p50_ms for _ in range(room.pace.repetitions)]


async def _settled(stack: Stack) -> None:
    """Wait until what was loaded is in the tree: the work that follows a load is no part of a lease."""
    connection = await asyncpg.connect(stack.keyvault_dsn)
    try:

        async def is_signed() -> bool:
            return bool(await connection.fetchval(_IS_SIGNED))

        await eventually(is_signed, bool, timeout_seconds=_PATIENCE.total_seconds())
    finally:
        await connection.close()
