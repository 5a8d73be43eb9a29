"""How fast Metering writes a backlog to its ledger."""

import asyncio
import time
from typing import TYPE_CHECKING, Final

import asyncpg

from bench.companions import Driver
from bench.errors import BenchError
from bench.parts.metering import BATCHES, pairs_job
from bench.room import Room
from bench.rows import Row
from bench.suite import Suite

if TYPE_CHECKING:
    # Generic in its stubs, and not at run time.
    Connection = asyncpg.Connection[asyncpg.Record]

_POLL_SECONDS: Final = 0.02
_QUIET_SECONDS: Final = 1.5
_COUNT_SECONDS: Final = 0.3
_DRAIN_SECONDS_MAX: Final = 120
_COUNTED_SHARE: Final = 0.95
"""The last records go at the idle pace, which says nothing of the speed."""


async def measure_flush(room: Room, suite: Suite) -> list[Row]:
    """Let a backlog gather while the ledger can't be written, then time how it drains."""
    room.pin_measured("metering")
    pairs = await room.driver(pairs_job(suite))
    # An account that is not loaded yet waits for the ledger, which is locked below.
    await pairs.run(in_flight=BATCHES, seconds=room.pace.warm_seconds)
    connection = await asyncpg.connect(suite.stack.metering_dsn)
    try:
        await _quiet(connection)
        before = await _entries(connection)
        written = await _gather(connection, pairs, room.pace.backlog_seconds)
        seconds = await _drained(connection, before + written)
    finally:
        await connection.close()
    return [
        Row(
            id="metering.flush_rows_per_s",
            value=written * _COUNTED_SHARE / seconds,
            unit="row/s",
            spread=None,
            note=f"{written:,} entries that had gathered while the ledger was locked; "
            f"{_COUNTED_SHARE:.0%} of them written in {seconds:.2f} s, Metering on one core, Postgres on the other",
        )
    ]


async def _gather(connection: "Connection", pairs: Driver, seconds: float) -> int:
    """Keep the ledger from being written while load runs; return how many entries wait for it."""
    async with connection.transaction():
        # Reads go on, and so do licences: only what inserts entries waits.
        await connection.execute("LOCK TABLE ledger_entries IN SHARE MODE")
        load = await pairs.run(in_flight=BATCHES, seconds=seconds)
    return load.operations


async def _drained(connection: "Connection", entries: int) -> float:
    """Wait until the ledger has as many entries, and return how long most of their way took."""
    began = time.perf_counter()
    passed: list[tuple[float, int]] = []
    looked = 0.0
    while (now := time.perf_counter() - began) < _DRAIN_SECONDS_MAX:
        passed.append((now, await _watermark(connection)))
        # Counting is not cheap, and Postgres is at work.
        if now - looked > _COUNT_SECONDS:
            looked = now
            if await _entries(connection) >= entries:
                begin, end = passed[0][1], await _watermark(connection)
                return next((at for at, mark in passed if mark - begin >= (end - begin) * _COUNTED_SHARE), now)
        await asyncio.sleep(_POLL_SECONDS)
    raise BenchError(f"the ledger was still being written after {_DRAIN_SECONDS_MAX} s")


async def _quiet(connection: "Connection") -> None:
    """Wait until nothing is being written."""
    last, since = -1, time.perf_counter()
    while time.perf_counter() - since < _QUIET_SECONDS:
        now = await _watermark(connection)
        if now != last:
            last, since = now, time.perf_counter()
        await asyncio.sleep(_POLL_SECONDS)


async def _watermark(connection: "Connection") -> int:
    return int(await connection.fetchval("SELECT sum(sequence) FROM partitions"))


async def _entries(connection: "Connection") -> int:
    return int(await connection.fetchval("SELECT count(*) FROM ledger_entries"))
