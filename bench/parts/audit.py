"""How fast entries become durable in KeyVault's audit log, and what it costs to make them part of the signed tree.

Measured in the bench's own process, on a database of its own beside the suite's: the adapters and the use case that a
replica runs, without gRPC.
"""

import asyncio
import time
import uuid
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Final

from typing_extensions import override

from bench.room import Room
from bench.rows import Row, row_of
from bench.suite import Suite
from keyvault.adapters.metric_alarms import MetricAlarms
from keyvault.adapters.postgres.authority import PostgresAuthority
from keyvault.adapters.postgres.pool import Database, PostgresOptions, open_database
from keyvault.adapters.postgres.row_history import PostgresCorruptionLog
from keyvault.adapters.postgres.schema import migrate
from keyvault.adapters.postgres.tree import PostgresTree
from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.keyring import KeyPurpose, Keyring, draw_key
from keyvault.domain.leaf_seals import LeafSealer
from keyvault.domain.ownership import owner_account
from keyvault.ports import KeyringSource
from keyvault.usecases.check_leaves import CheckLeaves
from keyvault.usecases.integrate_log import IntegrateLog
from keyvault.usecases.prove_log import ProveLog
from keyvault.usecases.report_corruption import ReportCorruption
from servicekit.clock import SystemClock
from servicekit.metrics import Metrics
from testkit.postgres import create_database, drop_database, dsn_of_database

_BATCH: Final = 64
_IN_FLIGHT: Final = 4
_ENTRY: Final = AuditEntry(
    kind=EntryKind.LEASE_GRANTED,
    time=datetime(2026, 1, 1, tzinfo=UTC),
    caller="spiffe://byok.local/ns/byok/sa/router",
    provider_key_id="0192f0c1-2f00-7000-8000-000000000001",
    key_version=1,
    key_state=2,
    agent_id="0192f0c1-2f00-7000-8000-000000000002",
    account=owner_account("0192f0c1-2f00-7000-8000-000000000003"),
    details=(("lease_id", "0192f0c1-2f00-7000-8000-000000000004"), ("operation", "GUARDRAIL_EVALUATION")),
)


class _Ring(KeyringSource):
    """A keyring of this run."""

    def __init__(self) -> None:
        self._ring = Keyring("bench", [draw_key(purpose, version=1) for purpose in KeyPurpose], {})

    @override
    def current(self) -> Keyring:
        return self._ring

    @override
    async def reload(self) -> Keyring:
        return self._ring


async def measure_audit(room: Room, suite: Suite) -> list[Row]:
    """Append for a while, integrate what was appended, and again."""
    name = f"bench_{uuid.uuid4().hex[:12]}"
    await create_database(suite.stack.keyvault_dsn, name)
    try:
        dsn = dsn_of_database(suite.stack.keyvault_dsn, name)
        await migrate(dsn)
        second = timedelta(seconds=10)
        options = PostgresOptions(
            dsn=dsn, pool_min=_IN_FLIGHT, pool_max=_IN_FLIGHT, connect_timeout=second, statement_timeout=second
        )
        async with open_database(options) as database:
            return await _measured(room, database)
    finally:
        await drop_database(suite.stack.keyvault_dsn, name)


async def _measured(room: Room, database: Database) -> list[Row]:
    ring = _Ring()
    sealer = LeafSealer(ring.current)
    log, integrate = PostgresAuthority(database, sealer), _integration(database, ring, sealer)
    appended, integrated, alone = [], [], []
    for _ in range(room.pace.repetitions):
        count, seconds = await _append(log, room.pace.warm_seconds)
        appended.append(count / seconds)
        begin = time.process_time()
        await integrate.covering(await log.head())
        integrated.append((time.process_time() - begin) / count * 1e6)
        alone.append(await _alone_ms(log))
    return [
        row_of(
            "keyvault.audit_append_per_s",
            appended,
            unit="entry/s",
            note=f"durable; {_IN_FLIGHT} batches of {_BATCH} at a time; one entry alone {median(alone):.2f} ms p50",
        ),
        row_of(
            "keyvault.audit_integrate_us_per_entry",
            integrated,
            unit="µs",
            note="CPU time of the process that reads, checks and hashes new entries, stores tiles and signs",
        ),
    ]


def _integration(database: Database, ring: KeyringSource, sealer: LeafSealer) -> IntegrateLog:
    tree = PostgresTree(database)
    report = ReportCorruption(
        PostgresCorruptionLog(database, sealer),
        alarms=MetricAlarms(Metrics("bench")),
        clock=SystemClock(),
        reporter="bench",
    )
    return IntegrateLog(tree, check=CheckLeaves(sealer, ring, {}), prove=ProveLog(tree), keyring=ring, report=report)


async def _append(log: PostgresAuthority, seconds: float) -> tuple[int, float]:
    """Append batches for so long; return how many entries, and how long it took."""
    begin = time.perf_counter()

    async def keep_on() -> int:
        count = 0
        while time.perf_counter() - begin < seconds:
            await log.append([_ENTRY] * _BATCH)
            count += _BATCH
        return count

    counts = await asyncio.gather(*(keep_on() for _ in range(_IN_FLIGHT)))
    return sum(counts), time.perf_counter() - begin


async def _alone_ms(log: PostgresAuthority) -> float:
    """Return how long one entry alone takes."""
    took = []
    for _ in range(200):
        begin = time.perf_counter()
        await log.append([_ENTRY])
        took.append((time.perf_counter() - begin) * 1000)
    return median(took)
