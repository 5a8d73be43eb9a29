"""The contracts of key health on memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from keyvault.adapters.memory_health import MemoryCorruptionLog, MemoryErasures, MemoryKeyChecks, MemorySecrets
from services.keyvault.tests.contract.health_contracts import (
    CorruptionLogContract,
    ErasureStoreContract,
    HealthStores,
    KeyCheckStoreContract,
    SecretStoreContract,
)
from services.keyvault.tests.contract.store_contracts import Scribe, new_scribe
from services.keyvault.tests.contract.test_memory_stores import MemoryStore

if TYPE_CHECKING:
    from datetime import datetime


class MemoryHealth(HealthStores):
    """Everything in memory."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.checks = MemoryKeyChecks(store.authority)
        self.erasures: MemoryErasures = MemoryErasures(store.authority)
        self.secrets = MemorySecrets(store.authority)
        self.corruption = MemoryCorruptionLog(store.authority)

    @override
    async def add_backup(self, backup_id: str, snapshot_time: datetime, expire_time: datetime) -> None:
        self.erasures.backups.append((snapshot_time, expire_time))


@pytest.fixture
def stores() -> MemoryHealth:
    """Return empty stores."""
    return MemoryHealth(MemoryStore())


@pytest.fixture
async def scribe(stores: MemoryHealth) -> Scribe:
    """Return a writer on a fresh keyring."""
    return await new_scribe(stores.store)


class TestMemoryKeyChecks(KeyCheckStoreContract):
    """Plans in memory."""


class TestMemoryErasures(ErasureStoreContract):
    """Erasures in memory."""


class TestMemorySecrets(SecretStoreContract):
    """Secrets in memory."""


class TestMemoryCorruptionLog(CorruptionLogContract):
    """Findings in memory."""
