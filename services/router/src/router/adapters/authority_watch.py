"""Keeps a watch on authority at KeyVault, replaced before it is left and resumed by index when it breaks.

Every stream has a connection of its own. So a stream that is opened because the other end is going away, because its
connection is old or because it has fallen silent, does not end up on what it is to replace: a connection to a process
that is stopped is never ready. The old stream is left when the next one has proved its contact, so that contact does
not lapse in between; what both tell is the same, and is taken from both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import grpc
import structlog

from byok.keyvault.v1.lease_service_pb2 import WatchAck, WatchAuthorityRequest, WatchHello, WatchPing

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from byok.keyvault.v1.lease_service_pb2 import WatchAuthorityResponse
    from byok.keyvault.v1.lease_service_pb2_grpc import LeaseServiceStub
    from router.adapters.authority import Authority
    from servicekit.clock import Clock

    Connect = Callable[[], AbstractAsyncContextManager[LeaseServiceStub]]

_log = structlog.get_logger("router.authority")

_NANOSECONDS: Final = 1_000_000_000
_PINGS_WAITING_MAX: Final = 64
_ACK_PAUSE: Final = timedelta(milliseconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLimits:
    """Pace and patience of the watch.

    Attributes:
        ping_interval: How often contact is proved.
        silence_max: After this without an echo the next stream is begun; after twice that a stream is given up.
        reconnect_delay: Pause before a broken stream is opened anew.
        tries_max: How often a stream is begun on one connection, or at the next replica that it leads to.
    """

    ping_interval: timedelta
    silence_max: timedelta
    reconnect_delay: timedelta
    tries_max: int = 3


class _Outgoing:
    """What is to be sent on one stream: pings in order, and the newest acknowledgement, which stands for all before.

    An acknowledgement is sent at once unless one was just sent: changes that come in a burst share one.
    """

    def __init__(self, hello: WatchHello, clock: Clock) -> None:
        self._hello: WatchHello | None = hello
        self._clock = clock
        self._pings: deque[WatchPing] = deque(maxlen=_PINGS_WAITING_MAX)
        self._acknowledged = 0
        self._has_ack = False
        self._news = asyncio.Event()

    def ping(self, ping: WatchPing) -> None:
        self._pings.append(ping)
        self._news.set()

    def acknowledge(self, index: int) -> None:
        self._acknowledged = max(self._acknowledged, index)
        self._has_ack = True
        self._news.set()

    async def messages(self) -> AsyncIterator[WatchAuthorityRequest]:
        while True:
            self._news.clear()
            if self._hello is not None:
                hello, self._hello = self._hello, None
                yield WatchAuthorityRequest(hello=hello)
            elif self._has_ack:
                self._has_ack = False
                yield WatchAuthorityRequest(ack=WatchAck(authority_index=self._acknowledged))
                await self._clock.sleep(_ACK_PAUSE)
            elif self._pings:
                yield WatchAuthorityRequest(ping=self._pings.popleft())
            else:
                await self._news.wait()


@dataclass(eq=False)
class _Stream:
    """One stream: whether it is ready, has proved its contact, and is to be replaced."""

    echo_time: float
    is_ready: bool = False
    in_contact: asyncio.Event = field(default_factory=asyncio.Event)
    is_leaving: asyncio.Event = field(default_factory=asyncio.Event)
    following: asyncio.Task[None] | None = None

    async def until(self, event: asyncio.Event) -> bool:
        """Wait until `event` or the end of the stream, and return whether the stream goes on."""
        if self.following is None:
            raise AssertionError("a stream is followed as soon as it is made")
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait({self.following, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        return not self.following.done()

    @property
    def has_ended(self) -> bool:
        """Whether nothing comes from it any more."""
        return self.following is not None and self.following.done()

    @property
    def cause(self) -> str:
        """Why it ended; asked of every stream, so that no failure goes unnoticed."""
        with contextlib.suppress(asyncio.CancelledError):
            error = self.following.exception() if self.following is not None else None
            if isinstance(error, grpc.aio.AioRpcError):
                return error.code().name
            return type(error).__name__ if error is not None else "ENDED"
        return "CANCELLED"

    async def leave(self) -> None:
        """End it from this side."""
        if self.following is not None:
            self.following.cancel()
            await asyncio.wait({self.following})
            _log.debug("authority.watch_left", cause=self.cause)


class AuthorityWatch:
    """Feeds an `Authority` from KeyVault's streams."""

    def __init__(
        self, connect: Connect, authority: Authority, *, holder: str, limits: WatchLimits, clock: Clock
    ) -> None:
        """Watch as `holder`; `connect` opens a connection for one stream."""
        self._connect = connect
        self._authority = authority
        self._holder = holder
        self._limits = limits
        self._clock = clock

    async def run(self) -> None:
        """Watch until cancelled. A stream that is to be replaced is left when the next one is in contact."""
        streams: list[_Stream] = []
        try:
            while True:
                stream = _Stream(self._clock.monotonic())
                stream.following = asyncio.create_task(self._follow(stream))
                streams.append(stream)
                if await stream.until(stream.in_contact):
                    for old in streams[:-1]:
                        await old.leave()
                    streams = [stream]
                    if await stream.until(stream.is_leaving):
                        continue
                await self._clock.sleep(self._limits.reconnect_delay)
                for ended in [each for each in streams if each.has_ended]:
                    streams.remove(ended)
                    self._note_end(ended)
        finally:
            for stream in streams:
                await stream.leave()

    def _note_end(self, stream: _Stream) -> None:
        cause = stream.cause
        _log.warning("authority.watch_ended", cause=cause)
        if cause == grpc.StatusCode.INVALID_ARGUMENT.name:
            # The log is shorter than what we have heard of it: a restored backup, another vault.
            self._authority.restart()

    async def _follow(self, stream: _Stream) -> None:
        async with self._connect() as stub:
            for tries_left in reversed(range(self._limits.tries_max)):
                try:
                    await self._follow_once(stub, stream)
                except grpc.aio.AioRpcError as error:
                    if stream.is_ready or not tries_left or error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                        raise
                    # A replica that is going away takes no watch: UNAVAILABLE, or INTERNAL where its refusal met a ping
                    # on its way. The connection leads to the next replica.
                    await self._clock.sleep(self._limits.reconnect_delay)
                else:
                    return

    async def _follow_once(self, stub: LeaseServiceStub, stream: _Stream) -> None:
        outgoing = _Outgoing(WatchHello(holder=self._holder, resume_index=self._authority.index), self._clock)
        call = stub.WatchAuthority(outgoing.messages())
        pinging = asyncio.create_task(self._ping(outgoing))
        silence = asyncio.create_task(self._notice_silence(stream))
        reading = asyncio.create_task(self._read(call, outgoing, stream))
        try:
            await asyncio.wait({reading, silence}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise TimeoutError
            reading.result()
        finally:
            for task in (pinging, silence, reading):
                task.cancel()
            call.cancel()

    async def _notice_silence(self, stream: _Stream) -> None:
        """Ask for another stream when no echo comes, and return when none comes for as long again."""
        silence_max = self._limits.silence_max
        while True:
            left = stream.echo_time + silence_max.total_seconds() - self._clock.monotonic()
            if left > 0:
                await self._clock.sleep(timedelta(seconds=left))
            elif stream.is_leaving.is_set():
                return
            else:
                stream.is_leaving.set()
                await self._clock.sleep(silence_max)

    async def _read(self, call: AsyncIterable[WatchAuthorityResponse], outgoing: _Outgoing, stream: _Stream) -> None:
        async for message in call:
            self._take(message, outgoing, stream)

    def _take(self, message: WatchAuthorityResponse, outgoing: _Outgoing, stream: _Stream) -> None:
        match message.WhichOneof("message"):
            case "ready":
                stream.is_ready = True
                bound = message.ready.partition_bound.ToTimedelta()
                self._authority.begin(index=message.ready.authority_index, partition_bound=bound)
            case "change":
                self._authority.note_change(message.change)
                outgoing.acknowledge(message.change.authority_index)
            case "echo":
                ping_time = message.echo.monotonic_ns / _NANOSECONDS
                self._authority.note_echo(ping_time, index=message.echo.authority_index)
                stream.echo_time = self._clock.monotonic()
                stream.in_contact.set()
            case "draining":
                stream.is_leaving.set()
            case _:
                # A newer KeyVault says something that this release has no use for.
                return

    async def _ping(self, outgoing: _Outgoing) -> None:
        while True:
            outgoing.ping(WatchPing(monotonic_ns=int(self._clock.monotonic() * _NANOSECONDS)))
            self._authority.forget_old()
            await self._clock.sleep(self._limits.ping_interval)
