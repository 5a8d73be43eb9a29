"""A watcher that has been told up to an index has been told everything below it.

That is so because an index is assigned under the lock that its commit releases. A sequence gives numbers out and lets
their transactions commit in any order: the second test puts one in, and the change is skipped for good.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest

from keyvault.adapters.postgres.feed import PostgresFeed
from keyvault.adapters.postgres.pool import PostgresOptions, open_database
from keyvault.domain.audit_log import AuditEntry, EntryKind, IndexedEntry
from services.keyvault.tests.contract.test_postgres_stores import FixedKeyring
from services.keyvault.tests.unit.builders import NOW, leaf_sealer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# What the append function does, but for the lock: numbers from a sequence, and a head that is the newest number seen.
_SEQUENCE: Final = """
    CREATE SEQUENCE numbers;
    ALTER TABLE audit_head RENAME TO audit_head_of_before;
    CREATE VIEW audit_head AS SELECT coalesce(max(audit_index), 0) AS last_index FROM audit_entries;
    CREATE OR REPLACE FUNCTION append_audit_entries(p_kinds smallint[], p_subjects text[], p_leaves bytea[])
    RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        v_index bigint := nextval('numbers');
    BEGIN
        INSERT INTO audit_entries (audit_index, kind, subject, leaf, leaf_hash)
        SELECT v_index, kind, subject, leaf, sha256('\\x00'::bytea || leaf)
        FROM unnest(p_kinds, p_subjects, p_leaves) AS added (kind, subject, leaf);
        RETURN v_index;
    END $$;
"""
_APPEND: Final = "SELECT append_audit_entries($1::smallint[], $2::text[], $3::bytea[])"
_SEALER: Final = leaf_sealer()


class Race:
    """Two writers, the first of which is slow to commit, and what a watcher is told meanwhile."""

    def __init__(self, feed: PostgresFeed, slow: asyncpg.Connection, quick: asyncpg.Connection) -> None:
        self.feed = feed
        self.slow = slow
        self.quick = quick
        self.told: list[str] = []
        self.position = 0

    async def watch(self) -> None:
        """Read on, as the hub does."""
        page = await self.feed.read_changes(self.position, limit=100)
        self.told += [each.entry.provider_key_id for each in page.changes if isinstance(each, IndexedEntry)]
        self.position = page.head

    async def run(self) -> None:
        """Append by both, the slow one first; it commits last, if it is let."""
        transaction = self.slow.transaction()
        await transaction.start()
        await append(self.slow, "slow")
        second = asyncio.create_task(append(self.quick, "quick"))
        # Whether it may overtake the first is what the two kinds of numbers differ in.
        await asyncio.wait({second}, timeout=0.3)
        await self.watch()
        await transaction.commit()
        await second
        await self.watch()


async def append(connection: asyncpg.Connection, key_id: str) -> None:
    """Append the revocation of a key in one statement."""
    entry = AuditEntry(kind=EntryKind.KEY_REVOKED, time=NOW, caller="edge", provider_key_id=key_id)
    await connection.fetchval(_APPEND, [int(entry.kind)], [entry.subject], [_SEALER.seal(entry)])


@pytest.fixture
async def race(migrated_dsn: str) -> AsyncIterator[Race]:
    """Return two writers and a watcher of an empty log."""
    at_most = timedelta(seconds=10)
    options = PostgresOptions(
        dsn=migrated_dsn, pool_min=1, pool_max=1, connect_timeout=at_most, statement_timeout=at_most
    )
    async with open_database(options) as database:
        slow, quick = [await asyncpg.connect(migrated_dsn) for _ in range(2)]
        yield Race(PostgresFeed(database, _SEALER, FixedKeyring()), slow, quick)
        for connection in (slow, quick):
            await connection.close()


async def test_no_revocation_is_skipped_however_late_it_commits(race: Race) -> None:
    """Who comes second waits for the first: both are told, in the order of their indexes."""
    await race.run()
    assert race.told == ["slow", "quick"]


async def test_a_sequence_in_place_of_the_index_skips_one(race: Race) -> None:
    """What it costs to leave the rule out: a revocation that committed is never told."""
    await race.quick.execute(_SEQUENCE)
    await race.run()
    assert "slow" not in race.told
    stored = await race.quick.fetch("SELECT subject FROM audit_entries ORDER BY audit_index")
    assert [row["subject"] for row in stored] == ["key/slow", "key/quick"]
