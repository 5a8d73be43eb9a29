"""Databases that are migrated once and copied, and one replica on them."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable

import pytest

from services.metering.tests.rig import Rig, migrated, open_rig
from testkit.postgres import create_database, drop_database, dsn_of_database


@pytest.fixture(scope="session")
def metering_template(postgres_server: str) -> str:
    """Return the name of a migrated database to copy."""
    name = f"metering_template_{uuid.uuid4().hex[:12]}"

    async def make() -> None:
        await create_database(postgres_server, name)
        await migrated(dsn_of_database(postgres_server, name))

    asyncio.run(make())
    return name


@pytest.fixture
async def metering_dsn(postgres_server: str, metering_template: str) -> AsyncIterator[str]:
    """Return the DSN of a migrated database for this test alone."""
    name = f"metering_{uuid.uuid4().hex}"
    await create_database(postgres_server, name, template=metering_template)
    yield dsn_of_database(postgres_server, name)
    await drop_database(postgres_server, name)


@pytest.fixture
async def rig(metering_dsn: str, redis_database: str) -> AsyncIterator[Rig]:
    """Return one replica with a licence."""
    async with open_rig(metering_dsn, redis_database) as opened:
        # The first round finds a Redis that nobody knows, and takes it.
        await opened.replica.keeper.round()
        assert await opened.replica.keeper.round()
        yield opened


@pytest.fixture
def open_replica(metering_dsn: str, redis_database: str) -> Callable[[], object]:
    """Return the function that opens a further replica on the same stores."""
    return lambda: open_rig(metering_dsn, redis_database)
