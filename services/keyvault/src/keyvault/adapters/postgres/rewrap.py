"""The rewrap on Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast, get_args

from typing_extensions import override

from keyvault.domain.envelope import EnvelopeContext
from keyvault.domain.ownership import Account, AccountKind, Holder, Scope
from keyvault.domain.rewrap import Rewrap
from keyvault.ports.rewrap import RewrapStatus, RewrapStore, WrappedKey
from servicekit.errors import UnavailableError

if TYPE_CHECKING:
    from datetime import timedelta

    import asyncpg

    from keyvault.adapters.postgres.pool import Database
    from keyvault.domain.audit_log import AuditEntry
    from keyvault.domain.leaf_seals import LeafSealer
    from keyvault.ports.rewrap import RewrapBatch

_ASK: Final = "SELECT ask_for_rewrap($1, $2, $3)"
_READ: Final = "SELECT *, coalesce(worker_until > clock_timestamp(), false) AS has_worker FROM rewraps"
_CLAIM: Final = "SELECT *, true AS has_worker FROM claim_rewrap($1, $2)"
# By the columns, unverified: a wrap opens under nothing but what it was bound to, so that an edited column makes a
# failure and never another binding. The page is read first, and each row looked up by its index: the planner would
# rather merge the whole of both tables.
_WALK: Final = """
    WITH page AS MATERIALIZED (
        SELECT provider_key_id, key_version, wrapped_dek, kek_version FROM agent_ai_key_secrets
        WHERE (provider_key_id, key_version) > ($1, $2) ORDER BY provider_key_id, key_version LIMIT $3
    )
    SELECT s.*, k.scope, k.owner_kind, k.owner_id, k.agent_id, k.provider, k.base_url
    FROM page s LEFT JOIN LATERAL (
        SELECT scope, owner_kind, owner_id, agent_id, provider, base_url FROM agent_ai_keys
        WHERE provider_key_id = s.provider_key_id AND superseded_index IS NULL AND key_version = s.key_version LIMIT 1
    ) k ON true
    ORDER BY s.provider_key_id, s.key_version
"""
_WRITE: Final = "SELECT rewrap_secrets($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
_COMPLETE: Final = "SELECT complete_rewrap($1, $2, $3, $4)"


class PostgresRewrap(RewrapStore):
    """The pass of one database."""

    def __init__(self, database: Database, sealer: LeafSealer) -> None:
        """Work on `database`; `sealer` makes the leaf of the completion."""
        self._database = database
        self._seal = sealer.seal

    @override
    async def ask(self, *, start: bool, keys_per_second_max: int, pause: bool | None) -> None:
        await self._database.execute(_ASK, start, keys_per_second_max, pause)

    @override
    async def read(self) -> Rewrap:
        row = await self._database.fetch_row(_READ)
        if row is None:
            raise UnavailableError("the database lacks the row of the rewrap; run: keyvault migrate")
        return _rewrap(row)

    @override
    async def claim(self, worker: str, life: timedelta) -> Rewrap | None:
        row = await self._database.fetch_row(_CLAIM, worker, life)
        return None if row is None else _rewrap(row)

    @override
    async def walk(self, after: tuple[str, int], *, deployment: str, limit: int) -> list[WrappedKey]:
        return [
            WrappedKey(
                row["provider_key_id"],
                row["key_version"],
                row["wrapped_dek"],
                row["kek_version"],
                _context(row, deployment),
            )
            for row in await self._database.fetch(_WALK, *after, limit)
        ]

    @override
    async def write(self, worker: str, life: timedelta, batch: RewrapBatch) -> RewrapStatus:
        status: Any = await self._database.fetch_value(
            _WRITE,
            worker,
            life,
            batch.kek_version,
            [each.old.provider_key_id for each in batch.rewrapped],
            [each.old.key_version for each in batch.rewrapped],
            [each.old.wrapped_dek for each in batch.rewrapped],
            [each.wrapped_dek for each in batch.rewrapped],
            *batch.after,
            batch.failed,
            batch.keys_per_second,
        )
        if status not in get_args(RewrapStatus):
            raise UnavailableError("the rewrap function of the database is of another release")
        return cast("RewrapStatus", status)

    @override
    async def complete(self, worker: str, kek_version: int, entry: AuditEntry) -> int | None:
        rows = await self._database.append(_COMPLETE, worker, kek_version, int(entry.kind), self._seal(entry))
        index: int | None = rows[0][0]
        return index


def _context(row: asyncpg.Record, deployment: str) -> EnvelopeContext | None:
    if row["scope"] is None:
        return None
    return EnvelopeContext(
        deployment=deployment,
        provider_key_id=row["provider_key_id"],
        key_version=row["key_version"],
        holder=Holder(Scope(row["scope"]), Account(AccountKind(row["owner_kind"]), row["owner_id"]), row["agent_id"]),
        provider=row["provider"],
        base_url=row["base_url"],
    )


def _rewrap(row: asyncpg.Record) -> Rewrap:
    return Rewrap(
        is_wanted=row["is_wanted"],
        is_paused=row["is_paused"],
        has_worker=row["has_worker"],
        keys_per_second_max=row["keys_per_second_max"],
        kek_version=row["kek_version"],
        after=(row["after_key_id"], row["after_key_version"]),
        done=row["done"],
        failed=row["failed"],
        total=row["total"],
        keys_per_second=row["keys_per_second"],
        start_time=row["start_time"],
        end_time=row["end_time"],
        completion_index=row["completion_index"],
    )
