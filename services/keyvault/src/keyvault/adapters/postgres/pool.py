"""The connections to Postgres, and the one translation of its failures."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import orjson

from keyvault.domain.errors import AuditUnavailableError
from servicekit.calls import call_deadline
from servicekit.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# InternalClientError is what asyncpg raises when the server ends a connection between two messages.
FAILURES: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresOptions:
    """How to reach the database and how many connections to hold."""

    dsn: str
    pool_min: int
    pool_max: int
    connect_timeout: timedelta
    statement_timeout: timedelta


class Database:
    """A pool of connections. Every statement has a deadline, cut to what is left of the call that is being served."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], statement_timeout: timedelta) -> None:
        """Use `pool`; make it by `open_database`."""
        self._pool = pool
        self._statement_timeout = statement_timeout

    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Return the rows of a reading statement. Raises UnavailableError."""
        with _reads():
            return await self._pool.fetch(query, *args, timeout=call_deadline(self._statement_timeout))

    async def fetch_row(self, query: str, *args: object) -> asyncpg.Record | None:
        """Return the first row of a reading statement. Raises UnavailableError."""
        with _reads():
            return await self._pool.fetchrow(query, *args, timeout=call_deadline(self._statement_timeout))

    async def fetch_value(self, query: str, *args: object) -> Any:
        """Return one value of a reading statement. Raises UnavailableError."""
        with _reads():
            return await self._pool.fetchval(query, *args, timeout=call_deadline(self._statement_timeout))

    async def execute(self, query: str, *args: object) -> None:
        """Run a statement that appends nothing to the log. Raises UnavailableError."""
        with _reads():
            await self._pool.execute(query, *args, timeout=call_deadline(self._statement_timeout))

    async def append(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Run the one statement of an append, and return its rows when it is committed.

        Raises:
            AuditUnavailableError: it is not known to be durable.
        """
        with _appends():
            return await self._pool.fetch(query, *args, timeout=call_deadline(self._statement_timeout))


def as_json(value: object) -> str:
    """Return `value` as the text of a jsonb argument."""
    return orjson.dumps(value).decode()


@contextlib.asynccontextmanager
async def open_database(options: PostgresOptions) -> AsyncIterator[Database]:
    """Open the pool, and close it at the end.

    Raises:
        UnavailableError: the database cannot be reached.
    """
    with _reads():
        pool = await asyncpg.create_pool(
            options.dsn,
            min_size=options.pool_min,
            max_size=options.pool_max,
            reset=_keep,
            timeout=options.connect_timeout.total_seconds(),
            # Durable means durable: a session default of the server must not weaken it.
            server_settings={"application_name": "byok-keyvault", "synchronous_commit": "on"},
        )
    try:
        yield Database(pool, options.statement_timeout)
    finally:
        try:
            async with asyncio.timeout(options.statement_timeout.total_seconds()):
                await pool.close()
        except FAILURES:
            pool.terminate()


async def _keep(_connection: object) -> None:
    """Leave a connection as it is: nothing changes the state of a session, and a reset is a round trip a statement."""


@contextlib.contextmanager
def _reads() -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        # The type is enough: a message of the database can hold what was in a row.
        raise UnavailableError("the database does not answer; retry", failure=type(error).__name__) from None


@contextlib.contextmanager
def _appends() -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        raise AuditUnavailableError(
            "the audit entry could not be made durable, so nothing was changed or leased; retry",
            failure=type(error).__name__,
        ) from None
