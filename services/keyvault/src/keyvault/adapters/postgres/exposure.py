"""The log and the keys as a search for exposed keys reads them, on Postgres."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from keyvault.domain.audit_log import IndexedEntry, decode_leaf
from keyvault.domain.canonical import CanonicalFormError
from keyvault.domain.errors import AuditLogCorruptError, AuthorityForgedError
from keyvault.ports.exposure import ExposureLog, LeasePage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import asyncpg

    from keyvault.adapters.postgres.pool import Database
    from keyvault.domain.audit_log import AuditEntry
    from keyvault.domain.leaf_seals import LeafSealer

_BOUNDS: Final = """
    SELECT coalesce((SELECT min(audit_index) FROM audit_entries), 1) AS first, last_index FROM audit_head
"""
_NEXT: Final = """
    SELECT audit_index, kind, subject, leaf FROM audit_entries WHERE audit_index >= $1 ORDER BY audit_index LIMIT 1
"""
# The limit bounds what is read, not what is found: a log without leases must not make one long statement.
_LEASES: Final = """
    SELECT audit_index, kind, subject, CASE WHEN kind = 100 THEN leaf END AS leaf
    FROM audit_entries WHERE audit_index > $1 AND audit_index <= $2 ORDER BY audit_index LIMIT $3
"""
_KEY_IDS: Final = """
    SELECT provider_key_id FROM agent_ai_keys
    WHERE superseded_index IS NULL AND provider_key_id > $1 ORDER BY provider_key_id LIMIT $2
"""
_SECRETS: Final = """
    SELECT asked.provider_key_id, newest.audit_index, newest.kind, newest.subject, newest.leaf
    FROM unnest($1::text[]) AS asked (provider_key_id)
    CROSS JOIN LATERAL (
        SELECT audit_index, kind, subject, leaf FROM audit_entries
        WHERE kind < 100 AND subject = 'key/' || asked.provider_key_id AND kind IN (1, 3)
        ORDER BY audit_index DESC LIMIT 1
    ) newest
"""


class PostgresExposure(ExposureLog):
    """Reads one database, and believes no entry whose seal is not this service's: an inserted one hides a key."""

    def __init__(self, database: Database, sealer: LeafSealer) -> None:
        """Read `database`; `sealer` tells which leaves are this service's."""
        self._database = database
        self._sealer = sealer

    @override
    async def bounds(self) -> tuple[int, int]:
        row = await self._database.fetch_row(_BOUNDS)
        return (1, 0) if row is None else (row["first"], row["last_index"])

    @override
    async def time_at(self, audit_index: int) -> datetime:
        row = await self._database.fetch_row(_NEXT, audit_index)
        if row is None:
            raise _unreadable(audit_index)
        return self._entry(row).time

    @override
    async def read_leases(self, after: int, *, up_to: int, limit: int) -> LeasePage:
        rows = await self._database.fetch(_LEASES, after, up_to, limit)
        leases = [IndexedEntry(row["audit_index"], self._entry(row)) for row in rows if row["leaf"] is not None]
        return LeasePage(leases, rows[-1]["audit_index"] if rows else up_to)

    @override
    async def key_ids(self, after: str, *, limit: int) -> list[str]:
        return [row["provider_key_id"] for row in await self._database.fetch(_KEY_IDS, after, limit)]

    @override
    async def secret_times(self, provider_key_ids: Sequence[str]) -> dict[str, datetime]:
        rows = await self._database.fetch(_SECRETS, list(provider_key_ids))
        times = {}
        for row in rows:
            # Without a time the key counts as not replaced: a forged entry must keep no owner from being told.
            with contextlib.suppress(AuthorityForgedError):
                times[row["provider_key_id"]] = self._entry(row).time
        return times

    def _entry(self, row: asyncpg.Record) -> AuditEntry:
        leaf = row["leaf"]
        try:
            self._sealer.check(leaf, kind=row["kind"], subject=row["subject"])
            return decode_leaf(leaf)
        except (AuditLogCorruptError, CanonicalFormError):
            raise _unreadable(row["audit_index"]) from None


def _unreadable(audit_index: int) -> AuthorityForgedError:
    message = "an entry of the audit log cannot be read; verify the log before you trust a search of it"
    return AuthorityForgedError(message, row_id="audit_entries", audit_index=audit_index)
