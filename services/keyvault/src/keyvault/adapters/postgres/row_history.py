"""Authority rows beside the log, and findings of corruption, on Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from typing_extensions import override

from keyvault.domain.audit_log import EntryKind
from keyvault.domain.row_history import KINDS_OF_ROWS, RowId, RowKind, share_name
from keyvault.ports import CorruptionLog, EntryState, RowHistory, RowState

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from keyvault.adapters.postgres.pool import Database
    from keyvault.domain.audit_log import AuditEntry
    from keyvault.domain.leaf_seals import LeafSealer

# Each reads rows and log in one statement, so in one snapshot. Rows are told by their id columns: a row that was hidden
# by these is missing where its entry is looked at. An entry with an empty leaf vouches for nothing: it is a finding
# where entries are looked at.
_KEY_ROWS: Final = """
    SELECT k.provider_key_id AS name, k.audit_index, greatest(0, (
        SELECT max(e.audit_index) FROM audit_entries e
        WHERE e.subject = 'key/' || k.provider_key_id AND e.kind < 100 AND e.kind BETWEEN 1 AND 5
    )) AS newest_index
    FROM agent_ai_keys k WHERE k.superseded_index IS NULL AND k.provider_key_id > $1
    ORDER BY k.provider_key_id LIMIT $2
"""
_BINDING_ROWS: Final = """
    SELECT b.agent_id AS name, b.audit_index, greatest(0, (
        SELECT max(e.audit_index) FROM audit_entries e
        WHERE e.subject = 'agent/' || b.agent_id AND e.kind < 100 AND e.kind = 6
    )) AS newest_index
    FROM agent_bindings b WHERE b.superseded_index IS NULL AND b.agent_id > $1
    ORDER BY b.agent_id LIMIT $2
"""
# Entries of all shares of a key have one subject. The entry of a share is told by the row that it wrote: one without a
# row among those of this share is another share's, or is missing, which is found where entries are looked at.
_SHARE_ROWS: Final = """
    SELECT s.provider_key_id || '/' || s.agent_id AS name, s.audit_index, greatest((
        SELECT max(h.audit_index) FROM key_shares h
        JOIN audit_entries e ON e.audit_index = h.audit_index AND e.kind IN (7, 8)
        WHERE h.provider_key_id = s.provider_key_id AND h.agent_id = s.agent_id
          AND e.subject = 'key/' || s.provider_key_id), 0) AS newest_index
    FROM key_shares s
    WHERE s.superseded_index IS NULL
      AND (s.provider_key_id, s.agent_id) > (split_part($1::text, '/', 1), substr($1, strpos($1, '/') + 1))
    ORDER BY s.provider_key_id, s.agent_id LIMIT $2
"""
_HALT_ROWS: Final = """
    SELECT '' AS name, h.audit_index, coalesce((
        SELECT max(e.audit_index) FROM audit_entries e WHERE e.subject = 'halts' AND e.kind < 100 AND e.kind = 9
    ), 0) AS newest_index
    FROM halt_sets h WHERE h.superseded_index IS NULL AND $1 = '' ORDER BY h.audit_index LIMIT $2
"""
_ROWS: Final = {
    RowKind.KEY: _KEY_ROWS,
    RowKind.BINDING: _BINDING_ROWS,
    RowKind.SHARE: _SHARE_ROWS,
    RowKind.HALTS: _HALT_ROWS,
}
# The page is read first, and each row looked up by its index: the planner would rather read the whole of each table.
_ENTRIES: Final = """
    WITH page AS MATERIALIZED (
        SELECT e.audit_index, e.kind, e.subject, e.leaf = '' AS is_blank FROM audit_entries e
        WHERE e.kind < 100 AND e.audit_index > $1 ORDER BY e.audit_index LIMIT $2
    )
    SELECT p.audit_index, p.kind, p.subject, p.is_blank, found.share_agent_id,
           found.share_agent_id IS NOT NULL AS is_row_there
    FROM page p LEFT JOIN LATERAL (
        SELECT '' AS share_agent_id FROM agent_ai_keys k
        WHERE p.kind BETWEEN 1 AND 5 AND k.provider_key_id = substr(p.subject, 5) AND k.audit_index = p.audit_index
        UNION ALL
        SELECT '' FROM agent_bindings b
        WHERE p.kind = 6 AND b.agent_id = substr(p.subject, 7) AND b.audit_index = p.audit_index
        UNION ALL
        SELECT sh.agent_id FROM key_shares sh
        WHERE p.kind IN (7, 8) AND sh.provider_key_id = substr(p.subject, 5) AND sh.audit_index = p.audit_index
        UNION ALL
        SELECT '' FROM halt_sets h WHERE p.kind = 9 AND h.audit_index = p.audit_index
        LIMIT 1
    ) found ON true
    ORDER BY p.audit_index
"""
_APPEND_CORRUPTION: Final = "SELECT append_corruption($1, $2, $3, $4, $5, $6) AS is_new"


class PostgresRowHistory(RowHistory):
    """Rows and log of one database."""

    def __init__(self, database: Database) -> None:
        """Read `database`."""
        self._database = database

    @override
    async def read_rows(self, kind: RowKind, after: str, limit: int) -> Sequence[RowState]:
        rows = await self._database.fetch(_ROWS[kind], after, limit)
        return [RowState(RowId(kind, row["name"]), row["audit_index"], row["newest_index"]) for row in rows]

    @override
    async def read_entries(self, after_index: int, limit: int) -> Sequence[EntryState]:
        rows = await self._database.fetch(_ENTRIES, after_index, limit)
        return [EntryState(row["audit_index"], _row_of(row), row["is_row_there"], row["is_blank"]) for row in rows]


class PostgresCorruptionLog(CorruptionLog):
    """Findings of one database."""

    def __init__(self, database: Database, sealer: LeafSealer) -> None:
        """Work on `database`; `sealer` makes the leaves of the log."""
        self._database = database
        self._seal = sealer.seal

    @override
    async def append_corruption(self, row_id: str, what: str, row_index: int, entry: AuditEntry) -> bool:
        rows = await self._database.append(
            _APPEND_CORRUPTION, row_id, what, row_index, int(entry.kind), entry.subject, self._seal(entry)
        )
        return bool(rows[0]["is_new"])


def _row_of(row: asyncpg.Record) -> RowId:
    kind = KINDS_OF_ROWS[EntryKind(row["kind"])]
    subject = row["subject"].partition("/")[2]
    if kind is RowKind.SHARE:
        return RowId(kind, share_name(subject, row["share_agent_id"] or ""))
    return RowId(kind, "" if kind is RowKind.HALTS else subject)
