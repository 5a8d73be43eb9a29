"""Sealed secrets as a whole, on Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from typing_extensions import override

from keyvault.adapters.postgres.authority import key_row
from keyvault.ports import KeyRow, SecretRow, SecretStore

if TYPE_CHECKING:
    import asyncpg

    from keyvault.adapters.postgres.pool import Database
    from keyvault.domain.ownership import Account

_EQUAL: Final = """
    SELECT k.* FROM agent_ai_key_secrets mine
    JOIN agent_ai_key_secrets s
      ON s.equality_mac = mine.equality_mac AND s.equality_mac_version = mine.equality_mac_version
     AND s.provider_key_id <> mine.provider_key_id
    JOIN agent_ai_keys k
      ON k.provider_key_id = s.provider_key_id AND k.key_version = s.key_version AND k.superseded_index IS NULL
    WHERE mine.provider_key_id = $1 AND ($2::smallint IS NULL OR (k.owner_kind = $2 AND k.owner_id = $3))
    ORDER BY k.provider_key_id LIMIT $4
"""
# The page is read first, and each row looked up by its index: the planner would rather merge the whole of both tables.
_WALK: Final = """
    WITH page AS MATERIALIZED (
        SELECT provider_key_id, key_version, wrapped_dek, kek_version FROM agent_ai_key_secrets
        WHERE (provider_key_id, key_version) > ($1, $2) ORDER BY provider_key_id, key_version LIMIT $3
    )
    SELECT p.provider_key_id AS secret_key_id, p.key_version AS secret_version, p.wrapped_dek, p.kek_version, k.*
    FROM page p LEFT JOIN LATERAL (
        SELECT * FROM agent_ai_keys
        WHERE provider_key_id = p.provider_key_id AND superseded_index IS NULL AND key_version = p.key_version LIMIT 1
    ) k ON true
    ORDER BY p.provider_key_id, p.key_version
"""


class PostgresSecrets(SecretStore):
    """The secrets of one database."""

    def __init__(self, database: Database) -> None:
        """Read `database`."""
        self._database = database

    @override
    async def find_equal(self, provider_key_id: str, *, owned_by: Account | None, limit: int) -> list[KeyRow]:
        kind = None if owned_by is None else int(owned_by.kind)
        owner_id = "" if owned_by is None else owned_by.party_id
        return [key_row(row) for row in await self._database.fetch(_EQUAL, provider_key_id, kind, owner_id, limit)]

    @override
    async def walk(self, after: tuple[str, int], limit: int) -> list[SecretRow]:
        return [_secret_row(row) for row in await self._database.fetch(_WALK, *after, limit)]


def _secret_row(row: asyncpg.Record) -> SecretRow:
    return SecretRow(
        provider_key_id=row["secret_key_id"],
        key_version=row["secret_version"],
        wrapped_dek=row["wrapped_dek"],
        kek_version=row["kek_version"],
        key=None if row["audit_index"] is None else key_row(row),
    )
