"""The wrapped keyring on Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from typing_extensions import override

from keyvault.domain.keyring import KeyPurpose, KeyringRecord, KeyState
from keyvault.ports import KeyringStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyvault.adapters.postgres.pool import Database

# A newer release may have stored purposes and states that this one has no use for: they are passed over.
_LOAD: Final = """
    SELECT purpose, version, state, root_key_id, wrapped_key, canary FROM keyring_keys
    WHERE purpose = ANY($1::smallint[]) AND state = ANY($2::smallint[]) ORDER BY purpose, version
"""
# One statement: of two replicas that start at once, the second finds the rows of the first and inserts none of its own.
# Both insert in the order of purposes, so neither waits for the other while it holds what that one wants.
_CREATE: Final = """
    INSERT INTO keyring_keys (purpose, version, state, root_key_id, wrapped_key, canary)
    SELECT * FROM unnest($1::smallint[], $2::integer[], $3::smallint[], $4::text[], $5::bytea[], $6::bytea[])
    ON CONFLICT DO NOTHING
    RETURNING purpose
"""


class PostgresKeyringStore(KeyringStore):
    """The keyring of one database."""

    def __init__(self, database: Database) -> None:
        """Work on `database`."""
        self._database = database

    @override
    async def load(self) -> list[KeyringRecord]:
        return [
            KeyringRecord(
                purpose=KeyPurpose(row["purpose"]),
                version=row["version"],
                state=KeyState(row["state"]),
                root_key_id=row["root_key_id"],
                wrapped_key=row["wrapped_key"],
                canary=row["canary"],
            )
            for row in await self._database.fetch(_LOAD, list(KeyPurpose), list(KeyState))
        ]

    @override
    async def create(self, records: Sequence[KeyringRecord]) -> bool:
        rows = await self._database.append(
            _CREATE,
            [int(record.purpose) for record in records],
            [record.version for record in records],
            [int(record.state) for record in records],
            [record.root_key_id for record in records],
            [record.wrapped_key for record in records],
            [record.canary for record in records],
        )
        return len(rows) > 0
