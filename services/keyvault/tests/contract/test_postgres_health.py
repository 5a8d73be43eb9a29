"""The contracts of key health on Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from keyvault.adapters.postgres.erasures import PostgresErasures
from keyvault.adapters.postgres.key_health import PostgresKeyChecks
from keyvault.adapters.postgres.row_history import PostgresCorruptionLog
from keyvault.adapters.postgres.secrets import PostgresSecrets
from services.keyvault.tests.contract.health_contracts import (
    CorruptionLogContract,
    ErasureStoreContract,
    HealthStores,
    KeyCheckStoreContract,
    SecretStoreContract,
)
from services.keyvault.tests.contract.store_contracts import Scribe, new_scribe
from services.keyvault.tests.contract.test_postgres_stores import PostgresStore
from services.keyvault.tests.unit.builders import leaf_sealer

if TYPE_CHECKING:
    from datetime import datetime

    from keyvault.adapters.postgres.pool import Database


class PostgresHealth(HealthStores):
    """Everything on one database."""

    def __init__(self, database: Database) -> None:
        sealer = leaf_sealer()
        self.database = database
        self.store = PostgresStore(database)
        self.checks = PostgresKeyChecks(database, sealer)
        self.erasures = PostgresErasures(database, sealer)
        self.secrets = PostgresSecrets(database)
        self.corruption = PostgresCorruptionLog(database, sealer)

    @override
    async def add_backup(self, backup_id: str, snapshot_time: datetime, expire_time: datetime) -> None:
        await self.database.execute(
            "INSERT INTO backups (backup_id, snapshot_time, expire_time) VALUES ($1, $2, $3)",
            backup_id,
            snapshot_time,
            expire_time,
        )


@pytest.fixture
def stores(database: Database) -> PostgresHealth:
    """Return empty stores."""
    return PostgresHealth(database)


@pytest.fixture
async def scribe(stores: PostgresHealth) -> Scribe:
    """Return a writer on a fresh keyring."""
    return await new_scribe(stores.store)


class TestPostgresKeyChecks(KeyCheckStoreContract):
    """Plans on Postgres."""


class TestPostgresErasures(ErasureStoreContract):
    """Erasures on Postgres."""


class TestPostgresSecrets(SecretStoreContract):
    """Secrets on Postgres."""


class TestPostgresCorruptionLog(CorruptionLogContract):
    """Findings on Postgres."""
