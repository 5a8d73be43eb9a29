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

    from asyncpg.pool import PoolConnectionProxy

    _Connection = PoolConnectionProxy[asyncpg.Record]

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


_GIVE_BACK_SECONDS: Final = 1.0
"""How long a server may take to acknowledge that a statement was given up, before its connection is cut."""
_SECONDS_MIN: Final = 0.001
"""A connection that came late still gets a statement that ends by itself."""


class Database:
    """A pool of connections. Every statement has a deadline, cut to what is left of the call that is being served.

    The deadline holds for all that a statement waits for: a connection, the answer, and the end of a statement that is
    given up. A server that hangs holds no caller, and its connections are cut, so that it is reached anew.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], statement_timeout: timedelta) -> None:
        """Use `pool`; make it by `open_database`."""
        self._pool = pool
        self._statement_timeout = statement_timeout
        self._giving_back: set[asyncio.Task[None]] = set()

    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Return the rows of a reading statement. Raises UnavailableError."""
        with _reads():
            async with self._connection() as (connection, seconds):
                return await connection.fetch(query, *args, timeout=seconds)

    async def fetch_row(self, query: str, *args: object) -> asyncpg.Record | None:
        """Return the first row of a reading statement. Raises UnavailableError."""
        with _reads():
            async with self._connection() as (connection, seconds):
                return await connection.fetchrow(query, *args, timeout=seconds)

    async def fetch_value(self, query: str, *args: object) -> Any:
        """Return one value of a reading statement. Raises UnavailableError."""
        with _reads():
            async with self._connection() as (connection, seconds):
                return await connection.fetchval(query, *args, timeout=seconds)

    async def execute(self, query: str, *args: object) -> None:
        """Run a statement that appends nothing to the log. Raises UnavailableError."""
        with _reads():
            async with self._connection() as (connection, seconds):
                await connection.execute(query, *args, timeout=seconds)

    async def append(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Run the one statement of an append, and return its rows when it is committed.

        Raises:
            AuditUnavailableError: it is not known to be durable.
        """
        with _appends():
            async with self._connection() as (connection, seconds):
                return await connection.fetch(query, *args, timeout=seconds)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[_Connection, float]]:
        """Give a connection for one statement, and the seconds that are left for it."""
        seconds = call_deadline(self._statement_timeout)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + seconds
        # What this time is for, asyncpg would also take for giving the connection back.
        connection = await self._pool.acquire(timeout=seconds)
        try:
            yield connection, max(give_up_at - loop.time(), _SECONDS_MIN)
        except asyncpg.ReadOnlySQLTransactionError:
            # This server is a primary no more, or is not yet: what the pool holds leads to it for ever.
            await self._pool.expire_connections()
            await self._pool.release(connection, timeout=_GIVE_BACK_SECONDS)
            raise
        except BaseException:
            # Not awaited: a server that hangs does not acknowledge a cancellation either.
            task = asyncio.create_task(self._give_back(connection))
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)
            raise
        else:
            await self._pool.release(connection)

    async def _give_back(self, connection: _Connection) -> None:
        # What is not acknowledged in time is cut by the pool itself.
        with contextlib.suppress(*FAILURES):
            await self._pool.release(connection, timeout=_GIVE_BACK_SECONDS)


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
