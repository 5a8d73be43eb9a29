"""Databases with this release's schema, copied from one that is migrated once."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import pytest

from keyvault.adapters.postgres.schema import migrate
from testkit.postgres import create_database, drop_database, dsn_of_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str) -> Iterator[str]:
    """Return the name of a migrated database that nothing is connected to."""
    name = f"keyvault_template_{uuid.uuid4().hex}"

    async def make() -> None:
        await create_database(postgres_server, name)
        await migrate(dsn_of_database(postgres_server, name))

    asyncio.run(make())
    yield name
    asyncio.run(drop_database(postgres_server, name))


@pytest.fixture
async def migrated_dsn(migrated_template: str, make_postgres_database: Callable[..., Awaitable[str]]) -> str:
    """Return an empty database with this release's schema, for this test alone."""
    return await make_postgres_database(template=migrated_template)
