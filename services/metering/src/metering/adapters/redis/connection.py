"""A lean connection for scripts: hiredis on an asyncio protocol, many commands a write, answers in order.

redis-py costs 20 to 50 µs a command; here a batch is one write and one future. Reconnects by itself; what was in flight
when a connection ended is unknown to have happened, and its waiters are told so. The server's identity is read on every
connection before the first script: another run id or replication id is another history.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, cast

import hiredis
from redis.asyncio.connection import parse_url
from typing_extensions import override

from metering.domain.errors import DependencyUnavailableError
from metering.domain.licences import StoreIdentity

_BATCHES_IN_FLIGHT_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionTimes:
    """Bounds of waiting."""

    connect: timedelta = timedelta(seconds=2)
    reply: timedelta = timedelta(seconds=2)


def unavailable(what: str) -> DependencyUnavailableError:
    """Return the error for a Redis that does not answer."""
    return DependencyUnavailableError(f"Redis {what}; nothing is admitted, retry soon.", dependency="redis")


class _Batch:
    __slots__ = ("count", "future", "replies")

    def __init__(self, count: int, future: "asyncio.Future[list[Any]]") -> None:
        self.count = count
        self.future = future
        self.replies: list[Any] = []


class _Protocol(asyncio.Protocol):
    """Matches replies with batches, in order."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[_Batch] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.is_lost = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but their class.
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                batch = self._waiting[0]
                batch.replies.append(reply)
                if len(batch.replies) == batch.count:
                    self._waiting.popleft()
                    if not batch.future.done():
                        batch.future.set_result(batch.replies)
        except (hiredis.ProtocolError, IndexError):
            # Not Redis, or out of step: no later answer on this connection can be trusted.
            self.abort()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        for batch in self._waiting:
            if not batch.future.done():
                batch.future.set_exception(unavailable("closed the connection"))
                # A waiter that gave up has nobody left to look.
                batch.future.exception()
        self._waiting.clear()

    def send(self, packed: bytes, count: int) -> "asyncio.Future[list[Any]]":
        """Send commands; the future gives their replies."""
        if self.is_lost or self._transport is None:
            raise unavailable("is not connected")
        if len(self._waiting) >= _BATCHES_IN_FLIGHT_MAX:
            raise unavailable("is behind by too many batches")
        batch = _Batch(count, asyncio.get_running_loop().create_future())
        self._waiting.append(batch)
        self._unsent.append(packed)
        if len(self._unsent) == 1:
            # Batches of the same turn of the loop share a write: the system call costs more than what it carries.
            asyncio.get_running_loop().call_soon(self._write)
        return batch.future

    def _write(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None and not self.is_lost:
            self._transport.write(b"".join(unsent))

    def abort(self) -> None:
        """Drop the connection; nothing it may still answer is wanted."""
        self.is_lost = True
        if self._transport is not None:
            self._transport.abort()


class ScriptConnection:
    """One connection to one server, made again when it is lost."""

    def __init__(self, url: str, *, times: ConnectionTimes | None = None) -> None:
        """Name the server; nothing is connected yet."""
        self._options = parse_url(url)
        self._times = times or ConnectionTimes()
        self._protocol: _Protocol | None = None
        self._connecting = asyncio.Lock()
        self._identity: StoreIdentity | None = None

    async def identity(self) -> StoreIdentity:
        """Return whom the connection is to, connecting if need be.

        Raises:
            DependencyUnavailableError: Redis cannot be reached.
        """
        if self._protocol is None or self._protocol.is_lost:
            await self._connect()
        if self._identity is None:
            raise unavailable("is not connected")
        return self._identity

    async def execute(self, packed: bytes, count: int) -> list[Any]:
        """Send `count` packed commands in one write and return their replies; a refused one is a `hiredis.ReplyError`.

        Raises:
            DependencyUnavailableError: Redis cannot be reached, or did not answer in time; whether anything was done is
                unknown.
        """
        if self._protocol is None or self._protocol.is_lost:
            await self._connect()
        protocol = self._protocol
        if protocol is None:
            raise unavailable("is not connected")
        try:
            async with asyncio.timeout(self._times.reply.total_seconds()):
                return await protocol.send(packed, count)
        except TimeoutError:
            protocol.abort()
            raise unavailable("does not answer") from None

    async def execute_on(self, identity: StoreIdentity, packed: bytes, count: int) -> list[Any] | None:
        """Send commands to the server of this identity; None, with nothing sent, when the connection is to another."""
        if await self.identity() != identity:
            return None
        # No await lies between the comparison and the write, so a new connection cannot slip in between.
        protocol = self._protocol
        if protocol is None or protocol.is_lost:
            raise unavailable("is not connected")
        try:
            async with asyncio.timeout(self._times.reply.total_seconds()):
                return await protocol.send(packed, count)
        except TimeoutError:
            protocol.abort()
            raise unavailable("does not answer") from None

    async def aclose(self) -> None:
        """Close the connection."""
        if self._protocol is not None:
            self._protocol.abort()

    async def _connect(self) -> None:
        async with self._connecting:
            if self._protocol is not None and not self._protocol.is_lost:
                return
            try:
                async with asyncio.timeout(self._times.connect.total_seconds()):
                    protocol = await self._open()
                    self._identity = await self._greet(protocol)
            except (OSError, TimeoutError) as error:
                raise unavailable("cannot be reached") from error
            self._protocol = protocol

    async def _open(self) -> _Protocol:
        loop = asyncio.get_running_loop()
        if "path" in self._options:
            _, protocol = await loop.create_unix_connection(_Protocol, self._options["path"])
            return protocol
        is_tls = self._options.get("connection_class") is not None
        host, port = self._options.get("host", "localhost"), self._options.get("port", 6379)
        _, protocol = await loop.create_connection(_Protocol, host, port, ssl=True if is_tls else None)
        return protocol

    async def _greet(self, protocol: _Protocol) -> StoreIdentity:
        commands: list[tuple[str, ...]] = []
        if password := self._options.get("password"):
            user = self._options.get("username")
            commands.append(("AUTH", user, password) if user else ("AUTH", password))
        if database := self._options.get("db"):
            commands.append(("SELECT", str(database)))
        commands += [("INFO", "server"), ("INFO", "replication")]
        sent = b"".join(packed(*command) for command in commands)
        replies = await protocol.send(sent, len(commands))
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                protocol.abort()
                raise unavailable("refused the connection")
        server, replication = (parse_info(reply) for reply in replies[-2:])
        return StoreIdentity(server["run_id"], replication["master_replid"])


def packed(*words: str | bytes | int) -> bytes:
    """Return a command as it goes on the wire."""
    # hiredis' own stub wants a tuple of exactly one word.
    return cast("bytes", hiredis.pack_command(words))  # type: ignore[arg-type]  # as said


def parse_info(reply: bytes) -> dict[str, str]:
    """Return the pairs of an INFO section."""
    lines = reply.decode().splitlines()
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}
