"""The tree on Postgres: large logs, replicas and processes that die, and forgeries under a serving vault."""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest
from typing_extensions import override

from byok.keyvault.v1 import audit_service_pb2, audit_service_pb2_grpc
from keyvault.adapters.postgres.pool import Database, PostgresOptions, open_database
from keyvault.adapters.postgres.tree import PostgresTree
from keyvault.domain.audit_log import AuditEntry, EntryKind, leaf_hash
from keyvault.domain.keyring import KeyPurpose, Keyring, KeyringKey, KeyState
from keyvault.domain.leaf_seals import LeafSealer
from keyvault.settings import AuditSettings
from keyvault.usecases.check_leaves import CheckLeaves
from keyvault.usecases.integrate_log import IntegrateLog
from keyvault.usecases.prove_log import ProveLog
from servicekit.secrets import Secret
from services.keyvault.tests.integration.vault import agent_item, refusal
from services.keyvault.tests.unit.builders import NOW
from services.keyvault.tests.unit.test_integrate_log import Report, Rings
from testkit.waiting import eventually
from transparency.checkpoints import open_checkpoint
from transparency.merkle import root_of, verify_inclusion
from transparency.tiles import TileId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from services.keyvault.tests.integration.vault import Vault
    from transparency.tiles import FullTile

RING = Keyring(
    "test",
    [
        KeyringKey(purpose, 1, KeyState.PRIMARY, Secret(bytes([number]) * 32))
        for number, purpose in enumerate(KeyPurpose, start=1)
    ],
    {},
)
LARGE = 65_536
ROOT = Path(__file__).resolve().parents[4]


def replica(database: Database, tree: PostgresTree | None = None) -> IntegrateLog:
    """Return a replica that has seen nothing yet."""
    store, source = tree or PostgresTree(database), Rings(RING)
    return IntegrateLog(
        store,
        check=CheckLeaves(LeafSealer(source.current), source, {}),
        prove=ProveLog(store),
        keyring=source,
        report=Report(),
    )


@dataclass
class FilledLog:
    """A database whose log can be filled quickly."""

    dsn: str
    database: Database
    hashes: list[bytes]

    async def fill(self, count: int) -> None:
        """Write entries by COPY, as the append function would have."""
        sealer = LeafSealer(lambda: RING)
        entry = AuditEntry(kind=EntryKind.LEASE_GRANTED, time=NOW, caller="test", provider_key_id="k")
        leaves = [sealer.seal(entry) for _ in range(count)]
        first = len(self.hashes) + 1
        added = [leaf_hash(leaf) for leaf in leaves]
        rows = [
            (first + at, 100, "key/k", leaf, digest)
            for at, (leaf, digest) in enumerate(zip(leaves, added, strict=True))
        ]
        self.hashes += added
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.copy_records_to_table("audit_entries", records=rows)
            await connection.execute("UPDATE audit_head SET last_index = $1", len(self.hashes))
        finally:
            await connection.close()


@pytest.fixture
async def filled(migrated_dsn: str) -> AsyncIterator[FilledLog]:
    """Return an empty log."""
    second = timedelta(seconds=10)
    options = PostgresOptions(
        dsn=migrated_dsn, pool_min=1, pool_max=4, connect_timeout=second, statement_timeout=second
    )
    async with open_database(options) as database:
        yield FilledLog(migrated_dsn, database, [])


async def proves_everywhere(log: FilledLog, indexes: Sequence[int]) -> None:
    """Prove entries of a log of its present length, in a process that did not integrate it."""
    size = len(log.hashes)
    signed = await replica(log.database).covering(size)
    assert (signed.size, signed.checkpoint.root) == (size, root_of(log.hashes))
    for index, proved in zip(
        indexes, await ProveLog(PostgresTree(log.database)).leaves(indexes, signed.checkpoint), strict=True
    ):
        verify_inclusion(
            leaf_hash=log.hashes[index - 1],
            index=index - 1,
            size=size,
            proof=list(proved.proof),
            root=signed.checkpoint.root,
        )


async def test_a_large_log_is_integrated_and_proved_at_every_edge(filled: FilledLog) -> None:
    """One entry short of a tile of tiles, then full, then one over: two levels of tiles, proofs from all."""
    await filled.fill(LARGE - 1)
    first = replica(filled.database)
    await first.covering(1)
    await proves_everywhere(filled, [1, 255, 256, 257, LARGE // 2, LARGE - 256, LARGE - 1])
    assert set(await PostgresTree(filled.database).read_tiles([TileId(0, 254), TileId(0, 255)])) == {TileId(0, 254)}
    for _ in range(2):
        await filled.fill(1)
        await proves_everywhere(filled, [1, 255, 256, 257, LARGE - 256, LARGE - 1, len(filled.hashes)])
    assert (await first.covering(len(filled.hashes))).checkpoint.root == root_of(filled.hashes)
    tiles = await filled.database.fetch("SELECT level, count(*) FROM audit_tiles GROUP BY level ORDER BY level")
    assert [tuple(row) for row in tiles] == [(0, 256), (1, 1)]
    # A proof is made of tiles alone: entries below the last full one may be dropped.
    connection = await asyncpg.connect(filled.dsn)
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("DELETE FROM audit_entries WHERE audit_index <= $1", LARGE)
    await connection.close()
    await filled.fill(1)
    await proves_everywhere(filled, [1, 256, LARGE // 2, LARGE, LARGE + 1, LARGE + 2])


async def test_replicas_that_integrate_at_once_write_one_tree(filled: FilledLog) -> None:
    """Whoever is first; the others write the same and are passed over."""
    replicas = [replica(filled.database) for _ in range(4)]
    for count in (700, 1, 256, 43):
        await filled.fill(count)
        size = len(filled.hashes)
        signed = await asyncio.gather(*(each.covering(size) for each in replicas))
        assert {(each.size, each.checkpoint.root) for each in signed} == {(size, root_of(filled.hashes))}
        assert len({each.note for each in signed}) == 1
    (row,) = await filled.database.fetch("SELECT count(*) AS tiles FROM audit_tiles")
    assert row["tiles"] == 1000 // 256


async def die(dsn: str) -> None:
    """Integrate up to the checkpoint, and die where it would be written."""

    class DyingTree(PostgresTree):
        @override
        async def put_tiles(self, tiles: Sequence[FullTile]) -> list[TileId]:
            conflicts = await super().put_tiles(tiles)
            signal.raise_signal(signal.SIGKILL)
            return conflicts

    second = timedelta(seconds=10)
    options = PostgresOptions(dsn=dsn, pool_min=1, pool_max=1, connect_timeout=second, statement_timeout=second)
    async with open_database(options) as database:
        await replica(database, DyingTree(database)).covering(1)


async def test_a_replica_that_is_killed_between_tile_and_checkpoint_leaves_nothing_wrong(filled: FilledLog) -> None:
    """Kill -9 after the tiles are stored; whoever comes next signs what nothing had gone wrong would have signed."""
    await filled.fill(300)
    program = f"import asyncio; from {__name__} import die; asyncio.run(die({filled.dsn!r}))"
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT)
    assert await killed.wait() == -signal.SIGKILL
    rows = await filled.database.fetch("SELECT level, position FROM audit_tiles")
    assert [tuple(row) for row in rows] == [(0, 0)]
    assert (await PostgresTree(filled.database).state()).note == ""
    await filled.fill(300)
    await proves_everywhere(filled, [1, 256, 257, 600])


async def checkpoint_of(vault: Vault) -> int:
    """Return the size of the newest stored checkpoint."""
    rows = await vault.sql("SELECT coalesce(max(size), 0) AS size FROM audit_checkpoints")
    return int(rows[0]["size"])


async def lease(vault: Vault) -> None:
    """Lease a key; it is a failure if it is refused."""
    (result,) = (await (await vault.router()).acquire(agent_item())).results
    assert result.WhichOneof("result") == "lease", result


async def test_new_entries_are_signed_within_a_second_or_so(vault: Vault) -> None:
    """Nobody has to ask."""
    await vault.bind()
    await vault.working_key()
    await lease(vault)
    (head,) = await vault.sql("SELECT last_index FROM audit_head")
    await eventually(lambda: checkpoint_of(vault), lambda size: size >= head["last_index"])


FORGERIES = {
    "inserted": (
        "WITH h AS (UPDATE audit_head SET last_index = last_index + 1 RETURNING last_index) "
        "INSERT INTO audit_entries SELECT h.last_index, 100, e.subject, e.leaf, e.leaf_hash "
        "FROM h, audit_entries e WHERE e.audit_index = $1"
    ),
    "edited": (
        "UPDATE audit_entries SET leaf = leaf || '\\x00', leaf_hash = sha256('\\x00'::bytea || leaf || '\\x00') "
        "WHERE audit_index = $1"
    ),
    "deleted": "DELETE FROM audit_entries WHERE audit_index = $1",
    "nothing": "SELECT $1::bigint",
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_forged_entry_stops_the_signing_and_no_lease(
    start_vault: Callable[..., Awaitable[Vault]], forgery: str
) -> None:
    """The checkpoint before it stays the newest, the alarm and the log say where; the last case is the control."""
    vault = await start_vault(audit=AuditSettings(checkpoint_interval=timedelta(hours=1)))
    await vault.bind()
    await vault.working_key()
    stub: Any = audit_service_pb2_grpc.AuditServiceStub(await vault.channel("operator"))
    await stub.GetCheckpoint(audit_service_pb2.GetCheckpointRequest())
    await lease(vault)
    (head,) = await vault.sql("SELECT last_index FROM audit_head")
    bad = head["last_index"] + (forgery == "inserted")
    await vault.forge(FORGERIES[forgery], head["last_index"])
    await lease(vault)
    covering = audit_service_pb2.GetCheckpointRequest(covering_index=bad)
    if forgery == "nothing":
        assert (await stub.GetCheckpoint(covering)).checkpoint
        assert await checkpoint_of(vault) > bad
        return
    error = await refusal(stub.GetCheckpoint(covering))
    assert (error.code, error.reason) == (grpc.StatusCode.DATA_LOSS, "AUDIT_LOG_CORRUPT")
    assert error.metadata["auditIndex"] == str(bad)
    feed = audit_service_pb2.ReadFeedRequest(after_index=bad - 1, no_wait=True)
    assert (await refusal(stub.ReadFeed(feed))).reason == "AUDIT_LOG_CORRUPT"
    # What was signed before it is told all the same, up to there and no further.
    signed = await stub.ReadFeed(audit_service_pb2.ReadFeedRequest(no_wait=True))
    assert signed.entries
    assert signed.next_after_index == await checkpoint_of(vault) < bad
    await lease(vault)
    assert await checkpoint_of(vault) < bad
    newest = await stub.GetCheckpoint(audit_service_pb2.GetCheckpointRequest())
    assert open_checkpoint(newest.checkpoint, newest.verifier_keys).size < bad
    reports = await vault.sql("SELECT audit_index FROM audit_entries WHERE kind = $1", int(EntryKind.CORRUPTION_FOUND))
    assert len(reports) == 1
    assert vault.metrics.registry.get_sample_value("keyvault_audit_log_corrupt") == 1
