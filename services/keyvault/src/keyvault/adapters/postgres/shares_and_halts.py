"""Shares and the set of halts, on Postgres. Each write is one statement, as in `authority`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from typing_extensions import override

from keyvault.adapters.postgres.authority import put_result, request_json, row_seal
from keyvault.adapters.postgres.pool import as_json
from keyvault.ports import HaltsChange, HaltsRow, HaltStore, PutResult, ShareChange, ShareFilter, ShareRow, ShareStore

if TYPE_CHECKING:
    import asyncpg

    from keyvault.adapters.postgres.authority import PostgresAuthority
    from keyvault.adapters.postgres.pool import Database
    from keyvault.domain.leaf_seals import LeafSealer
    from keyvault.domain.requests import RecordedRequest

_SHARES: Final = """
    SELECT provider_key_id, agent_id, is_ended, audit_index, record, mac_key_version, mac FROM key_shares
    WHERE provider_key_id = $1
"""
_PRESENT_SHARE: Final = f"{_SHARES} AND agent_id = $2 AND superseded_index IS NULL"
_SHARE_AT: Final = f"{_SHARES} AND agent_id = $2 AND audit_index = $3"
_LIST_SHARES: Final = (
    _SHARES
    + """
      AND superseded_index IS NULL AND NOT is_ended AND ($2 = '' OR agent_id = $2) AND agent_id > $3
    ORDER BY agent_id LIMIT $4
"""
)
_PUT_SHARE: Final = "SELECT status, audit_index FROM put_key_share($1, $2, $3, $4, $5, $6, $7)"
_HALTS: Final = "SELECT audit_index, record, mac_key_version, mac FROM halt_sets"
_PRESENT_HALTS: Final = f"{_HALTS} WHERE superseded_index IS NULL LIMIT 2"
_HALTS_AT: Final = f"{_HALTS} WHERE audit_index = $1"
_PUT_HALTS: Final = "SELECT status, audit_index FROM put_halt_set($1, $2, $3, $4, $5, $6, $7)"
# 104 is KEYRING_CHANGED: the keyring is made before anything that could be halted. Counted against the head, because
# the entries of a used log may have been archived, or deleted by somebody who wants it to look new.
_IS_LOG_NEW: Final = """
    SELECT NOT EXISTS (SELECT 1 FROM audit_entries WHERE kind <> 104)
       AND last_index = (SELECT count(*) FROM audit_entries WHERE kind = 104)
    FROM audit_head
"""


class PostgresSharesAndHalts(ShareStore, HaltStore):
    """Shares and halts of one database, beside keys and bindings in the same log."""

    def __init__(self, database: Database, sealer: LeafSealer, authority: PostgresAuthority) -> None:
        """Work on `database`; `sealer` makes the leaves of the log, `authority` knows the request ids."""
        self._database = database
        self._seal = sealer.seal
        self._authority = authority

    @override
    async def head(self) -> int:
        return await self._authority.head()

    @override
    async def find_request(self, scope: str, request_id: str) -> RecordedRequest | None:
        return await self._authority.find_request(scope, request_id)

    @override
    async def get_share(self, provider_key_id: str, agent_id: str) -> ShareRow | None:
        row = await self._database.fetch_row(_PRESENT_SHARE, provider_key_id, agent_id)
        return None if row is None else _share_row(row)

    @override
    async def get_share_at(self, provider_key_id: str, agent_id: str, audit_index: int) -> ShareRow | None:
        row = await self._database.fetch_row(_SHARE_AT, provider_key_id, agent_id, audit_index)
        return None if row is None else _share_row(row)

    @override
    async def find_shares(self, share_filter: ShareFilter) -> list[ShareRow]:
        rows = await self._database.fetch(
            _LIST_SHARES,
            share_filter.provider_key_id,
            share_filter.agent_id,
            share_filter.after_agent_id,
            share_filter.limit,
        )
        return [_share_row(row) for row in rows]

    @override
    async def put_share(self, change: ShareChange) -> PutResult:
        row = {
            "expected_index": change.expected_index,
            "mac_key_version": change.window.mac_key_version,
            "provider_key_id": change.share.provider_key_id,
            "agent_id": change.share.agent_id,
            "is_ended": change.share.is_ended,
        }
        return await self._put(_PUT_SHARE, row, change)

    @override
    async def is_log_new(self) -> bool:
        return bool(await self._database.fetch_value(_IS_LOG_NEW))

    @override
    async def get_halts(self) -> HaltsRow | None:
        rows = await self._database.fetch(_PRESENT_HALTS)
        return _halts_row(rows[0]) if len(rows) == 1 else None

    @override
    async def get_halts_at(self, audit_index: int) -> HaltsRow | None:
        row = await self._database.fetch_row(_HALTS_AT, audit_index)
        return None if row is None else _halts_row(row)

    @override
    async def put_halts(self, change: HaltsChange) -> PutResult:
        row = {
            "expected_index": change.expected_index,
            "mac_key_version": change.window.mac_key_version,
            "resource_id": change.resource_id,
        }
        return await self._put(_PUT_HALTS, row, change)

    async def _put(self, statement: str, row: dict[str, object], change: ShareChange | HaltsChange) -> PutResult:
        rows = await self._database.append(
            statement,
            as_json(row),
            change.record,
            change.window.first_index,
            list(change.window.macs),
            int(change.entry.kind),
            self._seal(change.entry),
            request_json(change.request),
        )
        return put_result(rows)


def _share_row(row: asyncpg.Record) -> ShareRow:
    return ShareRow(row["provider_key_id"], row["agent_id"], row["is_ended"], row["record"], row_seal(row))


def _halts_row(row: asyncpg.Record) -> HaltsRow:
    return HaltsRow(row["record"], row_seal(row))
