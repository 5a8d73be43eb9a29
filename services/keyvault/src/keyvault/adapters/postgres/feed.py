"""The feed of authority changes and the registry of watchers, on Postgres.

`LISTEN` needs a session of its own, which poolers in transaction mode do not give. It only makes the feed faster:
whoever reads it polls as well.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import asyncpg
import structlog
from typing_extensions import override

from keyvault.adapters.postgres.pool import FAILURES
from keyvault.domain.audit_log import IndexedEntry, decode_leaf
from keyvault.domain.canonical import CanonicalFormError
from keyvault.domain.errors import AuditLogCorruptError, KekVersionUnavailableError
from keyvault.ports import (
    AuthorityChanges,
    AuthorityFeed,
    KeyringSource,
    UntoldChange,
    WatcherRegistry,
    WatcherReport,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from datetime import timedelta

    from keyvault.adapters.postgres.pool import Database
    from keyvault.domain.leaf_seals import LeafSealer
    from servicekit.clock import Clock

CHANNEL: Final = "keyvault_authority"

_HEAD: Final = "SELECT last_index FROM audit_head"
# Head and changes in one snapshot: the head moves in the transaction that adds the entry. Indexes are gapless, so an
# entry right after $1 is missing only where there is none yet, or where old ones were archived and dropped.
_CHANGES: Final = """
    SELECT h.last_index, e.audit_index, e.kind, e.subject, e.leaf,
           h.last_index <= $1 OR EXISTS (SELECT FROM audit_entries n WHERE n.audit_index = $1 + 1) AS is_kept
    FROM audit_head h
    LEFT JOIN LATERAL (
        SELECT audit_index, kind, subject, leaf FROM audit_entries
        WHERE kind < 100 AND audit_index > $1 ORDER BY audit_index LIMIT $2
    ) e ON true
    ORDER BY e.audit_index
"""
_RECORD: Final = """
    INSERT INTO watchers AS w (caller, holder, acked_index, usable_until)
    SELECT r.caller, r.holder, max(r.acked),
           max(clock_timestamp() + CASE WHEN r.awaits THEN $5::interval ELSE interval '0' END)
    FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[]) AS r (caller, holder, acked, awaits)
    GROUP BY r.caller, r.holder
    ORDER BY r.caller, r.holder
    ON CONFLICT (caller, holder) DO UPDATE
    SET acked_index = greatest(w.acked_index, excluded.acked_index),
        usable_until = greatest(w.usable_until, excluded.usable_until)
"""
_PENDING: Final = "SELECT caller, holder FROM watchers WHERE acked_index < $1 AND usable_until > clock_timestamp()"
_ACKNOWLEDGED: Final = "SELECT caller, holder FROM watchers WHERE acked_index >= $1"
_FORGET: Final = "DELETE FROM watchers WHERE usable_until < clock_timestamp() - $1::interval"

_log = structlog.get_logger("keyvault.feed")


class PostgresFeed(AuthorityFeed):
    """Changes of authority, read from the primary."""

    def __init__(self, database: Database, sealer: LeafSealer, keyring: KeyringSource) -> None:
        """Read `database`, and believe what `sealer` finds to be sealed with a key of `keyring`."""
        self._database = database
        self._sealer = sealer
        self._keyring = keyring
        self._wakes: list[Callable[[], None]] = []

    @override
    async def head(self) -> int:
        return int(await self._database.fetch_value(_HEAD))

    @override
    async def read_changes(self, after: int, *, limit: int) -> AuthorityChanges:
        rows = await self._database.fetch(_CHANGES, after, limit)
        head = rows[0]["last_index"]
        if not rows[0]["is_kept"]:
            return AuthorityChanges(head=head, changes=[UntoldChange(head, is_corrupt=False)], is_complete=True)
        changes = [await self._change(row) for row in rows if row["audit_index"] is not None]
        return AuthorityChanges(head=head, changes=changes, is_complete=len(changes) < limit)

    async def _change(self, row: asyncpg.Record) -> IndexedEntry | UntoldChange:
        """Return what an entry says. Of one that is not as it was written nothing is believed, but that it is there."""
        if row["leaf"] is None:
            return UntoldChange(row["audit_index"], is_corrupt=False)
        try:
            await self._check(row)
            return IndexedEntry(row["audit_index"], decode_leaf(row["leaf"]))
        except (CanonicalFormError, AuditLogCorruptError, KekVersionUnavailableError):
            return UntoldChange(row["audit_index"], is_corrupt=True)

    async def _check(self, row: asyncpg.Record) -> None:
        try:
            self._sealer.check(row["leaf"], kind=row["kind"], subject=row["subject"])
        except KekVersionUnavailableError:
            # Another replica sealed with a key that this one has not read yet.
            await self._keyring.reload()
            self._sealer.check(row["leaf"], kind=row["kind"], subject=row["subject"])

    @override
    def on_change(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)

    @contextlib.asynccontextmanager
    async def listening(self, dsn: str, *, clock: Clock, retry: timedelta) -> AsyncIterator[None]:
        """Listen on a session connection to `dsn` while the context lasts, connecting again after `retry`."""
        task = asyncio.create_task(self._listen(dsn, clock, retry))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _listen(self, dsn: str, clock: Clock, retry: timedelta) -> None:
        while True:
            try:
                await self._listen_once(dsn)
            except FAILURES as error:
                _log.warning("feed.listen_failed", error=type(error).__name__)
            await clock.sleep(retry)

    async def _listen_once(self, dsn: str) -> None:
        connection = await asyncpg.connect(dsn, server_settings={"application_name": "byok-keyvault-listen"})
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        try:
            await connection.add_listener(CHANNEL, lambda *_: self._wake_all())
            # What was appended while nobody listened is found by the wake-up that follows the connection.
            self._wake_all()
            await ended.wait()
        finally:
            await connection.close(timeout=1)

    def _wake_all(self) -> None:
        for wake in self._wakes:
            wake()


class PostgresWatcherRegistry(WatcherRegistry):
    """Which Routers may still use what they cached; all replicas share it, and the database's clock."""

    def __init__(self, database: Database) -> None:
        """Work on `database`."""
        self._database = database

    @override
    async def record(self, reports: Sequence[WatcherReport], bound: timedelta) -> None:
        await self._database.execute(
            _RECORD,
            [report.caller for report in reports],
            [report.holder for report in reports],
            [report.acked_index for report in reports],
            [report.awaits_echo for report in reports],
            bound,
        )

    @override
    async def pending(self, audit_index: int) -> frozenset[tuple[str, str]]:
        rows = await self._database.fetch(_PENDING, audit_index)
        return frozenset((row["caller"], row["holder"]) for row in rows)

    @override
    async def acknowledged(self, audit_index: int) -> frozenset[tuple[str, str]]:
        rows = await self._database.fetch(_ACKNOWLEDGED, audit_index)
        return frozenset((row["caller"], row["holder"]) for row in rows)

    @override
    async def forget(self, idle: timedelta) -> None:
        await self._database.execute(_FORGET, idle)
