"""The store contracts on memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from keyvault.adapters.memory import MemoryAuthority, MemoryKeyringStore, MemoryWatcherRegistry
from keyvault.adapters.memory_shares_and_halts import MemorySharesAndHalts
from keyvault.domain.audit_log import leaf_hash
from services.keyvault.tests.contract.lease_contracts import HaltStoreContract, LeaseLogContract, ShareStoreContract
from services.keyvault.tests.contract.store_contracts import (
    AuthorityStoreContract,
    KeyringStoreContract,
    Store,
    WatcherRegistryContract,
)
from services.keyvault.tests.unit.builders import leaf_sealer

if TYPE_CHECKING:
    from keyvault.domain.keyring import KeyPurpose, KeyState
    from testkit.fake_clock import FakeClock


class MemoryStore(Store):
    """Everything in memory."""

    def __init__(self) -> None:
        self.keyring = MemoryKeyringStore()
        self.authority = MemoryAuthority(self.keyring, leaf_sealer())
        self.beside = MemorySharesAndHalts(self.authority)

    @override
    async def set_key_state(self, purpose: KeyPurpose, version: int, state: KeyState) -> None:
        self.keyring.set_state(purpose, version, state)

    @override
    async def leaves(self) -> list[tuple[int, int, bytes, bytes]]:
        return [
            (position, int(kind), leaf, leaf_hash(leaf))
            for position, (kind, leaf) in enumerate(self.authority.leaves, start=1)
        ]


@pytest.fixture
def store() -> MemoryStore:
    """Return an empty store."""
    return MemoryStore()


@pytest.fixture
def registry(fake_clock: FakeClock) -> MemoryWatcherRegistry:
    """Return an empty registry."""
    return MemoryWatcherRegistry(fake_clock)


class TestMemoryKeyringStore(KeyringStoreContract):
    """The keyring in memory."""


class TestMemoryAuthority(AuthorityStoreContract):
    """Authority in memory."""


class TestMemoryLeaseLog(LeaseLogContract):
    """Leases in memory."""


class TestMemoryShares(ShareStoreContract):
    """Shares in memory."""


class TestMemoryHalts(HaltStoreContract):
    """Halts in memory."""


class TestMemoryWatcherRegistry(WatcherRegistryContract):
    """Watchers in memory."""
