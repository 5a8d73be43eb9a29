"""A pool on a database of each test's own."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from keyvault.adapters.postgres.pool import Database, PostgresOptions, open_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def database(migrated_dsn: str) -> AsyncIterator[Database]:
    """Return a pool on a database with this release's schema."""
    options = PostgresOptions(
        dsn=migrated_dsn,
        pool_min=1,
        pool_max=4,
        connect_timeout=timedelta(seconds=10),
        statement_timeout=timedelta(seconds=10),
    )
    async with open_database(options) as opened:
        yield opened
