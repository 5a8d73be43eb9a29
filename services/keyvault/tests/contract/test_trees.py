"""The tree's contract on memory and on Postgres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from keyvault.adapters.memory import MemoryAuthority, MemoryKeyringStore
from keyvault.adapters.memory_tree import MemoryTree
from keyvault.adapters.postgres.authority import PostgresAuthority
from keyvault.adapters.postgres.tree import PostgresTree
from services.keyvault.tests.contract.tree_contract import AuditTreeContract, LogAndTree
from services.keyvault.tests.unit.builders import leaf_sealer

if TYPE_CHECKING:
    from keyvault.adapters.postgres.pool import Database
    from testkit.fake_clock import FakeClock


@dataclass
class Both(LogAndTree):
    """A log and its tree."""

    log: MemoryAuthority | PostgresAuthority
    tree: MemoryTree | PostgresTree


class TestMemoryTree(AuditTreeContract):
    """The tree in memory."""

    @pytest.fixture
    def both(self, fake_clock: FakeClock) -> Both:
        """Return an empty log and its tree."""
        log = MemoryAuthority(MemoryKeyringStore(), leaf_sealer())
        return Both(log, MemoryTree(log, fake_clock))


class TestPostgresTree(AuditTreeContract):
    """The tree on Postgres."""

    @pytest.fixture
    def both(self, database: Database) -> Both:
        """Return an empty log and its tree."""
        return Both(PostgresAuthority(database, leaf_sealer()), PostgresTree(database))
