"""How fast Metering writes a backlog to its ledger."""

import asyncio
import time
from typing import Final

import asyncpg

from bench.companions import Driver
from bench.errors import BenchError
from bench.parts.metering import BATCHES, pairs_job
from bench.room import Room
from bench.rows import Row
from bench.suite import Suite

_POLL_SECONDS: Final = 0.02
_QUIET_SECONDS: Final = 1.5
_DRAIN_SECONDS_MAX: Final = 120
_COUNTED_SHARE: Final = 0.95
"""The last records go at the idle pace, which says nothing of the speed."""


async def measure_flush(room: Room, suite: Suite) -> list[Row]:
    """Let a backlog gather while the ledger can't be written, then time how it drains."""
    room.pin_measured("metering")
    pairs = await room.driver(pairs_job(suite))
    connection: asyncpg.Connection = await asyncpg.connect(suite.stack.metering_dsn)
    try:
        await _quiet(connection)
        before = await _entries(connection)
        waited = await _gather(connection, pairs, room.pace.backlog_seconds)
        seconds = await _drained(connection)
        written = await _entries(connection) - before
    finally:
        await connection.close()
    return [
        Row(
            id="metering.flush_rows_per_s",
            value=written * _COUNTED_SHARE / seconds,
            unit="row/s",
            spread=None,
            note=f"{written:,} entries that had gathered while the ledger was locked for {waited:.0f} s; "
            f"{_COUNTED_SHARE:.0%} of them written in {seconds:.2f} s, Metering on one core, Postgres on the other",
        )
    ]


async def _gather(connection: asyncpg.Connection, pairs: Driver, seconds: float) -> float:
    """Keep the ledger from being written while load runs; return for how long."""
    began = time.perf_counter()
    async with connection.transaction():
        # Reads go on, and so do licences: only what inserts entries waits.
        await connection.execute("LOCK TABLE ledger_entries IN SHARE MODE")
        await pairs.run(in_flight=BATCHES, seconds=seconds)
    return time.perf_counter() - began


async def _drained(connection: asyncpg.Connection) -> float:
    """Wait until the watermarks stand still, and return how long most of their way took."""
    began = time.perf_counter()
    begin = await _watermark(connection)
    passed = [(0.0, 0)]
    while (now := time.perf_counter() - began) - passed[-1][0] < _QUIET_SECONDS:
        if now > _DRAIN_SECONDS_MAX:
            raise BenchError(f"the ledger was still being written after {_DRAIN_SECONDS_MAX} s")
        moved = await _watermark(connection) - begin
        if moved != passed[-1][1]:
            passed.append((now, moved))
        await asyncio.sleep(_POLL_SECONDS)
    if len(passed) == 1:
        raise BenchError("nothing was written to the ledger")
    return next(at for at, moved in passed if moved >= passed[-1][1] * _COUNTED_SHARE)


async def _quiet(connection: asyncpg.Connection) -> None:
    """Wait until nothing is being written."""
    last, since = -1, time.perf_counter()
    while time.perf_counter() - since < _QUIET_SECONDS:
        now = await _watermark(connection)
        if now != last:
            last, since = now, time.perf_counter()
        await asyncio.sleep(_POLL_SECONDS)


async def _watermark(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("SELECT sum(sequence) FROM partitions"))


async def _entries(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("SELECT count(*) FROM ledger_entries"))
