"""Authority rows, sealed secrets, request ids, leases and the log, on Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast, get_args

from typing_extensions import override

from keyvault.adapters.postgres.pool import as_json
from keyvault.domain.authority import RowSeal
from keyvault.domain.envelope import Envelope
from keyvault.domain.errors import AuditUnavailableError
from keyvault.domain.requests import RecordedRequest, RequestIdentity
from keyvault.ports import (
    AppendedLease,
    AuditLog,
    AuthorityQuery,
    AuthorityRows,
    BindingChange,
    BindingRow,
    BindingStore,
    FoundBy,
    KeyChange,
    KeyFilter,
    KeyRow,
    LeaseGrant,
    LeaseLog,
    ProviderKeyStore,
    PutResult,
    PutStatus,
    ShareRow,
)
from keyvault.usecases.verify_rows import found_by

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    import asyncpg

    from keyvault.adapters.postgres.pool import Database
    from keyvault.domain.audit_log import AuditEntry
    from keyvault.domain.leaf_seals import LeafSealer

_KEYS: Final = """
    SELECT provider_key_id, audit_index, scope, owner_kind, owner_id, agent_id, provider, base_url, priority, state,
           key_version, record, mac_key_version, mac
    FROM agent_ai_keys
"""
_PRESENT_KEY: Final = _KEYS + "WHERE provider_key_id = $1 AND superseded_index IS NULL"
_KEY_AT: Final = _KEYS + "WHERE provider_key_id = $1 AND audit_index = $2"
_PRESENT_KEYS: Final = _KEYS + "WHERE provider_key_id = ANY($1) AND superseded_index IS NULL"
_LIST_KEYS: Final = (
    _KEYS  # noqa: S608 (constants)
    + """
    WHERE superseded_index IS NULL AND owner_kind = $1 AND owner_id = $2 AND provider_key_id > $3
      AND ($4 OR state <> 7) AND ($5 = '' OR provider = $5)
      AND ($6 = '' OR scope IN (2, 4) OR (scope = 1 AND agent_id = $6) OR (scope = 3 AND EXISTS (
          SELECT 1 FROM key_shares s WHERE s.provider_key_id = agent_ai_keys.provider_key_id AND s.agent_id = $6
            AND s.superseded_index IS NULL AND NOT s.is_ended)))
    ORDER BY provider_key_id LIMIT $7
"""
)
_BINDING: Final = """
    SELECT agent_id, owner_id, audit_index, record, mac_key_version, mac FROM agent_bindings WHERE agent_id = $1
"""
_PRESENT_BINDING: Final = f"{_BINDING} AND superseded_index IS NULL"
_BINDING_AT: Final = f"{_BINDING} AND audit_index = $2"
_REQUEST: Final = """
    SELECT mac_key_version, body_mac, resource_id, audit_index FROM requests WHERE scope = $1 AND request_id = $2
"""
_FORGET_REQUESTS: Final = "DELETE FROM requests WHERE create_time < now() - $1::interval"
_HEAD: Final = "SELECT last_index FROM audit_head"
_AUTHORITY: Final = """
    WITH named AS MATERIALIZED (
        SELECT k.* FROM agent_ai_keys k WHERE k.superseded_index IS NULL AND k.provider_key_id = ANY($2)
    ), bound AS MATERIALIZED (
        SELECT b.agent_id, b.owner_id, b.audit_index, b.record, b.mac_key_version, b.mac
        FROM agent_bindings b WHERE b.agent_id = ANY($1) AND b.superseded_index IS NULL
    ), shared AS MATERIALIZED (
        SELECT s.* FROM key_shares s
        WHERE s.agent_id = ANY($1) AND s.superseded_index IS NULL AND NOT s.is_ended
    ), found AS (
        SELECT k.* FROM agent_ai_keys k
        WHERE k.superseded_index IS NULL AND k.scope = 1 AND k.state <> 7 AND k.agent_id = ANY($1)
        UNION ALL
        SELECT k.* FROM agent_ai_keys k
        WHERE k.superseded_index IS NULL AND k.scope = 2 AND k.state <> 7
          AND k.owner_id IN (SELECT owner_id FROM bound)
        UNION ALL
        SELECT k.* FROM agent_ai_keys k
        WHERE $3 AND k.superseded_index IS NULL AND k.scope = 4 AND k.state <> 7
        UNION ALL
        SELECT k.* FROM agent_ai_keys k
        WHERE k.superseded_index IS NULL AND k.scope = 3 AND k.state <> 7
          AND k.provider_key_id IN (SELECT provider_key_id FROM shared)
        UNION ALL
        SELECT named.* FROM named
    ), of_named AS (
        SELECT b.* FROM agent_bindings b
        WHERE b.superseded_index IS NULL AND b.agent_id IN (SELECT agent_id FROM named WHERE scope = 1)
        UNION ALL
        SELECT b.* FROM (SELECT DISTINCT owner_id FROM named WHERE scope = 2) o
        CROSS JOIN LATERAL (
            SELECT * FROM agent_bindings WHERE superseded_index IS NULL AND owner_id = o.owner_id
            ORDER BY agent_id LIMIT 1
        ) b
    )
    SELECT 'head' AS part, last_index AS audit_index, NULL AS provider_key_id, NULL::smallint AS scope,
           NULL::smallint AS owner_kind, NULL AS owner_id, NULL AS agent_id, NULL AS provider, NULL AS base_url,
           NULL::integer AS priority, NULL::smallint AS state, NULL::bigint AS key_version, NULL::bytea AS record,
           NULL::integer AS mac_key_version, NULL::bytea AS mac
    FROM audit_head
    UNION ALL
    SELECT 'binding', audit_index, NULL, NULL, NULL, owner_id, agent_id, NULL, NULL, NULL, NULL, NULL, record,
           mac_key_version, mac
    FROM bound
    UNION ALL
    SELECT 'binding', audit_index, NULL, NULL, NULL, owner_id, agent_id, NULL, NULL, NULL, NULL, NULL, record,
           mac_key_version, mac
    FROM of_named
    UNION ALL
    SELECT 'key', audit_index, provider_key_id, scope, owner_kind, owner_id, agent_id, provider, base_url, priority,
           state, key_version, record, mac_key_version, mac
    FROM found
    UNION ALL
    SELECT 'share', audit_index, provider_key_id, NULL, NULL, NULL, agent_id, NULL, NULL, NULL, NULL, NULL, record,
           mac_key_version, mac
    FROM shared
    UNION ALL
    SELECT 'halts', audit_index, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, mac_key_version, mac
    FROM halt_sets WHERE superseded_index IS NULL
"""
_PUT_KEY: Final = "SELECT status, audit_index FROM put_provider_key($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
_PUT_BINDING: Final = "SELECT status, audit_index FROM put_agent_binding($1, $2, $3, $4, $5, $6, $7)"
_APPEND_LEASES: Final = """
    SELECT item, audit_index, sealed_secret, wrapped_dek FROM append_leases($1, $2, $3, $4, $5, $6, $7)
"""
_APPEND: Final = "SELECT append_audit_entries($1, $2, $3) AS audit_index"


class PostgresAuthority(ProviderKeyStore, BindingStore, LeaseLog, AuditLog):
    """Keys, bindings, leases and the log of one database. Each write is one statement, so no lock outlives it."""

    def __init__(self, database: Database, sealer: LeafSealer) -> None:
        """Work on `database`; `sealer` makes the leaves of the log."""
        self._database = database
        self._seal = sealer.seal

    @override
    async def head(self) -> int:
        return int(await self._database.fetch_value(_HEAD))

    @override
    async def get(self, provider_key_id: str) -> KeyRow | None:
        row = await self._database.fetch_row(_PRESENT_KEY, provider_key_id)
        return None if row is None else key_row(row)

    @override
    async def get_at(self, provider_key_id: str, audit_index: int) -> KeyRow | None:
        row = await self._database.fetch_row(_KEY_AT, provider_key_id, audit_index)
        return None if row is None else key_row(row)

    @override
    async def get_many(self, provider_key_ids: Sequence[str]) -> list[KeyRow]:
        return [key_row(row) for row in await self._database.fetch(_PRESENT_KEYS, list(provider_key_ids))]

    @override
    async def find(self, key_filter: KeyFilter) -> list[KeyRow]:
        rows = await self._database.fetch(
            _LIST_KEYS,
            int(key_filter.account.kind),
            key_filter.account.party_id,
            key_filter.after_key_id,
            key_filter.include_revoked,
            key_filter.provider,
            key_filter.agent_id,
            key_filter.limit,
        )
        return [key_row(row) for row in rows]

    @override
    async def find_request(self, scope: str, request_id: str) -> RecordedRequest | None:
        row = await self._database.fetch_row(_REQUEST, scope, request_id)
        if row is None:
            return None
        identity = RequestIdentity(scope, request_id, row["mac_key_version"], row["body_mac"])
        return RecordedRequest(identity, row["resource_id"], row["audit_index"])

    @override
    async def forget_requests(self, age: timedelta) -> None:
        await self._database.execute(_FORGET_REQUESTS, age)

    @override
    async def put(self, change: KeyChange) -> PutResult:
        columns = found_by(change.key)
        secret = change.secret
        row = {
            "expected_index": change.expected_index,
            "mac_key_version": change.window.mac_key_version,
            **{name: getattr(columns, name) for name in FoundBy.__slots__},
        }
        rows = await self._database.append(
            _PUT_KEY,
            as_json(row),
            change.record,
            change.window.first_index,
            list(change.window.macs),
            int(change.entry.kind),
            self._seal(change.entry),
            None
            if secret is None
            else as_json(
                {
                    "kek_version": secret.envelope.kek_version,
                    "equality_mac_version": secret.equality_mac_version,
                    "equality_mac": secret.equality_mac.hex(),
                }
            ),
            None if secret is None else secret.envelope.sealed_secret,
            None if secret is None else secret.envelope.wrapped_dek,
            request_json(change.request),
        )
        return put_result(rows)

    @override
    async def get_binding(self, agent_id: str) -> BindingRow | None:
        row = await self._database.fetch_row(_PRESENT_BINDING, agent_id)
        return None if row is None else _binding_row(row)

    @override
    async def get_binding_at(self, agent_id: str, audit_index: int) -> BindingRow | None:
        row = await self._database.fetch_row(_BINDING_AT, agent_id, audit_index)
        return None if row is None else _binding_row(row)

    @override
    async def put_binding(self, change: BindingChange) -> PutResult:
        row = {
            "expected_index": change.expected_index,
            "mac_key_version": change.window.mac_key_version,
            "agent_id": change.binding.agent_id,
            "owner_id": change.binding.owner_id,
        }
        rows = await self._database.append(
            _PUT_BINDING,
            as_json(row),
            change.record,
            change.window.first_index,
            list(change.window.macs),
            int(change.entry.kind),
            self._seal(change.entry),
            request_json(change.request),
        )
        return put_result(rows)

    @override
    async def read_authority(self, query: AuthorityQuery) -> AuthorityRows:
        rows = await self._database.fetch(
            _AUTHORITY, list(query.agent_ids), list(query.key_ids), query.includes_platform
        )
        head = 0
        bindings: list[BindingRow] = []
        keys: list[KeyRow] = []
        shares: list[ShareRow] = []
        halts: list[RowSeal] = []
        for row in rows:
            part = row["part"]
            if part == "key":
                keys.append(key_row(row))
            elif part == "binding":
                bindings.append(_binding_row(row))
            elif part == "share":
                columns = (row["provider_key_id"], row["agent_id"])
                shares.append(ShareRow(*columns, is_ended=False, record=row["record"], seal=row_seal(row)))
            elif part == "halts":
                halts.append(row_seal(row))
            else:
                head = row["audit_index"]
        seal = halts[0] if len(halts) == 1 else None
        return AuthorityRows(head=head, bindings=bindings, keys=keys, shares=shares, halts=seal)

    @override
    async def append_leases(self, grants: Sequence[LeaseGrant], *, halts_index: int) -> list[AppendedLease | None]:
        rows = await self._database.append(
            _APPEND_LEASES,
            [grant.agent_id for grant in grants],
            [grant.binding_index for grant in grants],
            [grant.provider_key_id for grant in grants],
            [grant.key_index for grant in grants],
            [grant.share_index for grant in grants],
            [self._seal(grant.entry) for grant in grants],
            halts_index,
        )
        appended: list[AppendedLease | None] = [None] * len(grants)
        for item, audit_index, sealed_secret, wrapped_dek in rows:
            appended[item - 1] = AppendedLease(audit_index, Envelope(sealed_secret, wrapped_dek))
        return appended

    @override
    async def append(self, entries: Sequence[AuditEntry]) -> int:
        rows = await self._database.append(
            _APPEND,
            [int(entry.kind) for entry in entries],
            [entry.subject for entry in entries],
            [self._seal(entry) for entry in entries],
        )
        return int(rows[0]["audit_index"])


def key_row(row: asyncpg.Record) -> KeyRow:
    """Return the row of a key that was read with all of its columns."""
    columns = FoundBy(
        provider_key_id=row["provider_key_id"],
        scope=row["scope"],
        owner_kind=row["owner_kind"],
        owner_id=row["owner_id"],
        agent_id=row["agent_id"],
        provider=row["provider"],
        base_url=row["base_url"],
        priority=row["priority"],
        state=row["state"],
        key_version=row["key_version"],
    )
    return KeyRow(columns, row["record"], row_seal(row))


def _binding_row(row: asyncpg.Record) -> BindingRow:
    return BindingRow(row["agent_id"], row["owner_id"], row["record"], row_seal(row))


def row_seal(row: asyncpg.Record) -> RowSeal:
    """Return the seal of an authority row."""
    return RowSeal(row["audit_index"], row["mac_key_version"], row["mac"])


def request_json(request: RequestIdentity | None) -> str | None:
    """Return a request id as the put functions take it."""
    if request is None:
        return None
    return as_json(
        {
            "scope": request.scope,
            "request_id": request.request_id,
            "mac_key_version": request.mac_key_version,
            "body_mac": request.body_mac.hex(),
        }
    )


def put_result(rows: Sequence[asyncpg.Record]) -> PutResult:
    """Return what a put function answered."""
    status: Any = rows[0]["status"]
    if status not in get_args(PutStatus):
        raise AuditUnavailableError("the append function of the database is of another release")
    return PutResult(cast("PutStatus", status), rows[0]["audit_index"])
