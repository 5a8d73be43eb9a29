"""Erasures of owners, on Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from keyvault.adapters.postgres.authority import key_row, request_json
from keyvault.domain.erasures import Erasure
from keyvault.ports import ErasureStore, KeyRow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from keyvault.adapters.postgres.pool import Database
    from keyvault.domain.audit_log import AuditEntry
    from keyvault.domain.leaf_seals import LeafSealer
    from keyvault.domain.requests import RequestIdentity

_BEGIN: Final = "SELECT status, begin_index FROM begin_erasure($1, $2, $3, $4, $5, $6, $7, $8)"
_GET: Final = """
    SELECT e.*, (
        SELECT max(b.expire_time) FROM backups b WHERE b.snapshot_time < e.create_time AND b.expire_time > now()
    ) AS backups_expire_time
    FROM erasures e WHERE e.owner_id = $1 AND ($2::bigint IS NULL OR e.begin_index = $2)
    ORDER BY e.begin_index DESC LIMIT 1
"""
_UNFINISHED: Final = """
    SELECT e.*, NULL::timestamptz AS backups_expire_time FROM erasures e
    WHERE e.finish_time IS NULL ORDER BY e.create_time LIMIT $1
"""
_UNREVOKED: Final = """
    SELECT k.* FROM agent_ai_keys k
    WHERE k.owner_kind = 1 AND k.owner_id = $1 AND k.superseded_index IS NULL AND k.state <> 7
      AND k.provider_key_id > $3
      AND EXISTS (SELECT FROM agent_ai_keys f WHERE f.provider_key_id = k.provider_key_id AND f.audit_index <= $2)
    ORDER BY k.provider_key_id LIMIT $4
"""
# The last index at which one of the keys was revoked, whoever did it: watchers are waited for up to there.
_FINISH: Final = """
    UPDATE erasures e SET finish_time = $3, last_index = greatest(e.begin_index, (
        SELECT max(k.audit_index) FROM agent_ai_keys k
        WHERE k.owner_kind = 1 AND k.owner_id = $1 AND k.superseded_index IS NULL AND k.state = 7))
    WHERE e.owner_id = $1 AND e.begin_index = $2 AND e.finish_time IS NULL
"""


class PostgresErasures(ErasureStore):
    """The erasures of one database."""

    def __init__(self, database: Database, sealer: LeafSealer) -> None:
        """Work on `database`; `sealer` makes the leaves of the log."""
        self._database = database
        self._seal = sealer.seal

    @override
    async def begin(self, owner_id: str, *, entry: AuditEntry, request: RequestIdentity) -> int:
        rows = await self._database.append(
            _BEGIN,
            owner_id,
            entry.caller,
            entry.actor,
            entry.time,
            int(entry.kind),
            entry.subject,
            self._seal(entry),
            request_json(request),
        )
        return int(rows[0]["begin_index"])

    @override
    async def get(self, owner_id: str, begin_index: int | None = None) -> Erasure | None:
        row = await self._database.fetch_row(_GET, owner_id, begin_index)
        return None if row is None else _erasure(row)

    @override
    async def unfinished(self, limit: int) -> Sequence[Erasure]:
        return [_erasure(row) for row in await self._database.fetch(_UNFINISHED, limit)]

    @override
    async def unrevoked(self, erasure: Erasure, *, after_key_id: str, limit: int) -> list[KeyRow]:
        rows = await self._database.fetch(_UNREVOKED, erasure.owner_id, erasure.begin_index, after_key_id, limit)
        return [key_row(row) for row in rows]

    @override
    async def finish(self, erasure: Erasure, now: datetime) -> None:
        await self._database.execute(_FINISH, erasure.owner_id, erasure.begin_index, now)


def _erasure(row: Any) -> Erasure:
    return Erasure(**{name: row[name] for name in Erasure.__slots__})
