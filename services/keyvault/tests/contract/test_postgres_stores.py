"""The store contracts on Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from keyvault.adapters.postgres.authority import PostgresAuthority
from keyvault.adapters.postgres.feed import PostgresFeed, PostgresWatcherRegistry
from keyvault.adapters.postgres.keyring import PostgresKeyringStore
from keyvault.adapters.postgres.shares_and_halts import PostgresSharesAndHalts
from keyvault.domain.keyring import KeyPurpose
from keyvault.ports import KeyringSource
from keyvault.usecases.hold_keyring import wrap_new_keys
from services.keyvault.tests.contract.lease_contracts import HaltStoreContract, LeaseLogContract, ShareStoreContract
from services.keyvault.tests.contract.store_contracts import (
    AuthorityStoreContract,
    KeyringStoreContract,
    Store,
    WatcherRegistryContract,
)
from services.keyvault.tests.unit.builders import ROOT, keyring, leaf_sealer

if TYPE_CHECKING:
    from keyvault.adapters.postgres.pool import Database
    from keyvault.domain.keyring import Keyring, KeyState


class FixedKeyring(KeyringSource):
    """A keyring that nobody rotates."""

    def __init__(self) -> None:
        self._ring = keyring()

    @override
    def current(self) -> Keyring:
        return self._ring

    @override
    async def reload(self) -> Keyring:
        return self._ring


class PostgresStoreAndFeed(PostgresAuthority):
    """Both adapters that share the log, as one."""

    def __init__(self, database: Database) -> None:
        sealer = leaf_sealer()
        super().__init__(database, sealer)
        self._feed = PostgresFeed(database, sealer, FixedKeyring())

    async def read_changes(self, after: int, *, limit: int) -> Any:
        """Read by the feed's own adapter."""
        return await self._feed.read_changes(after, limit=limit)


class PostgresStore(Store):
    """Everything on one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.keyring = PostgresKeyringStore(database)
        self.authority = PostgresStoreAndFeed(database)
        self.beside = PostgresSharesAndHalts(database, leaf_sealer(), self.authority)

    @override
    async def set_key_state(self, purpose: KeyPurpose, version: int, state: KeyState) -> None:
        await self.database.execute(
            "UPDATE keyring_keys SET state = $3 WHERE purpose = $1 AND version = $2", purpose, version, state
        )

    @override
    async def leaves(self) -> list[tuple[int, int, bytes, bytes]]:
        rows = await self.database.fetch("SELECT * FROM audit_entries ORDER BY audit_index")
        return [(row["audit_index"], row["kind"], row["leaf"], row["leaf_hash"]) for row in rows]


@pytest.fixture
def store(database: Database) -> PostgresStore:
    """Return an empty store."""
    return PostgresStore(database)


@pytest.fixture
def registry(database: Database) -> PostgresWatcherRegistry:
    """Return an empty registry."""
    return PostgresWatcherRegistry(database)


class TestPostgresKeyringStore(KeyringStoreContract):
    """The keyring on Postgres."""

    @pytest.mark.parametrize(("purpose", "state"), [(99, 2), (1, 99)])
    async def test_what_a_newer_release_stored_is_passed_over(
        self, store: PostgresStore, purpose: int, state: int
    ) -> None:
        """A purpose or a state that this release does not know is no reason not to start."""
        records = await wrap_new_keys("test", KeyPurpose, ROOT)
        await store.keyring.create(records)
        await store.database.execute(
            "INSERT INTO keyring_keys VALUES ($1, 7, $2, 'file:other', '\\x00', '\\x00')", purpose, state
        )
        assert await store.keyring.load() == records


class TestPostgresAuthority(AuthorityStoreContract):
    """Authority on Postgres."""


class TestPostgresLeaseLog(LeaseLogContract):
    """Leases on Postgres."""


class TestPostgresShares(ShareStoreContract):
    """Shares on Postgres."""


class TestPostgresHalts(HaltStoreContract):
    """Halts on Postgres."""


class TestPostgresWatcherRegistry(WatcherRegistryContract):
    """Watchers on Postgres."""
