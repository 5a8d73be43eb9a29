"""Connections to Postgres, and its refusals in our own words."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg

from metering.domain.errors import DependencyUnavailableError

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = PoolConnectionProxy[asyncpg.Record]


class Database:
    """A pool, each use of which is bounded in time."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", *, acquire_timeout: timedelta) -> None:
        """Use a pool."""
        self._pool = pool
        self._acquire_seconds = acquire_timeout.total_seconds()

    @asynccontextmanager
    async def connection(self) -> "AsyncIterator[Connection]":
        """Lend a connection.

        Raises:
            DependencyUnavailableError: Postgres cannot be reached or did not answer in time.
        """
        try:
            async with self._pool.acquire(timeout=self._acquire_seconds) as connection:
                yield connection
        except (
            OSError,
            TimeoutError,
            asyncpg.PostgresConnectionError,
            asyncpg.InterfaceError,
            asyncpg.exceptions.OperatorInterventionError,
            asyncpg.exceptions.InsufficientResourcesError,
        ) as error:
            raise DependencyUnavailableError(
                "Postgres cannot be reached; retry soon.", dependency="postgres"
            ) from error

    @asynccontextmanager
    async def transaction(self) -> "AsyncIterator[Connection]":
        """Lend a connection inside a transaction; as `connection`."""
        async with self.connection() as connection, connection.transaction():
            yield connection


@asynccontextmanager
async def open_database(
    dsn: str, *, pool_max: int, command_timeout: timedelta, acquire_timeout: timedelta
) -> AsyncIterator[Database]:
    """Open a pool for as long as the context lasts."""
    pool = await asyncpg.create_pool(
        dsn,
        min_size=1,
        max_size=pool_max,
        command_timeout=command_timeout.total_seconds(),
    )
    try:
        yield Database(pool, acquire_timeout=acquire_timeout)
    finally:
        await pool.close()
