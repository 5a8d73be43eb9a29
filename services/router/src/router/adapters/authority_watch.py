"""Keeps a watch on authority at KeyVault: one stream, replaced before it is left, resumed by index when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import grpc
import structlog

from byok.keyvault.v1.lease_service_pb2 import WatchAck, WatchAuthorityRequest, WatchHello, WatchPing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from byok.keyvault.v1.lease_service_pb2 import WatchAuthorityResponse
    from byok.keyvault.v1.lease_service_pb2_grpc import LeaseServiceStub
    from router.adapters.authority import Authority
    from servicekit.clock import Clock

_log = structlog.get_logger("router.authority")

_NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLimits:
    """Pace and patience of the watch."""

    ping_interval: timedelta
    silence_max: timedelta
    reconnect_delay: timedelta


class AuthorityWatch:
    """Feeds an `Authority` from KeyVault's stream."""

    def __init__(
        self, stub: LeaseServiceStub, authority: Authority, *, holder: str, limits: WatchLimits, clock: Clock
    ) -> None:
        """Watch as `holder`."""
        self._stub = stub
        self._authority = authority
        self._holder = holder
        self._limits = limits
        self._clock = clock

    async def run(self) -> None:
        """Watch until cancelled; a stream that drains is left only after the next one has begun to be made."""
        streams: set[asyncio.Task[None]] = set()
        try:
            while True:
                is_draining = asyncio.Event()
                stream = asyncio.create_task(self._follow(is_draining))
                streams.add(stream)
                stream.add_done_callback(streams.discard)
                drained = asyncio.create_task(is_draining.wait())
                await asyncio.wait({stream, drained}, return_when=asyncio.FIRST_COMPLETED)
                drained.cancel()
                if stream.done():
                    # Asked of the task, so that its failure does not go unnoticed.
                    cause = _cause(stream)
                    _log.warning("authority.watch_ended", cause=cause)
                    if cause == grpc.StatusCode.INVALID_ARGUMENT.name:
                        # The log is shorter than what we have heard of it: a restored backup, another vault.
                        self._authority.restart()
                    await self._clock.sleep(self._limits.reconnect_delay)
        finally:
            for stream in streams:
                stream.cancel()

    async def _follow(self, is_draining: asyncio.Event) -> None:
        outgoing: asyncio.Queue[WatchAuthorityRequest] = asyncio.Queue()
        hello = WatchHello(holder=self._holder, resume_index=self._authority.index)
        outgoing.put_nowait(WatchAuthorityRequest(hello=hello))
        pinging = asyncio.create_task(self._ping(outgoing))
        stream = self._stub.WatchAuthority(_drain_queue(outgoing))
        messages = aiter(stream)
        try:
            while True:
                async with asyncio.timeout(self._limits.silence_max.total_seconds()):
                    message = await anext(messages)
                self._take(message, outgoing, is_draining)
        except StopAsyncIteration:
            return
        finally:
            pinging.cancel()
            stream.cancel()

    def _take(
        self,
        message: WatchAuthorityResponse,
        outgoing: asyncio.Queue[WatchAuthorityRequest],
        is_draining: asyncio.Event,
    ) -> None:
        match message.WhichOneof("message"):
            case "ready":
                bound = message.ready.partition_bound.ToTimedelta()
                self._authority.begin(index=message.ready.authority_index, partition_bound=bound)
            case "change":
                self._authority.note_change(message.change)
                ack = WatchAck(authority_index=message.change.authority_index)
                outgoing.put_nowait(WatchAuthorityRequest(ack=ack))
            case "echo":
                ping_time = message.echo.monotonic_ns / _NANOSECONDS
                self._authority.note_echo(ping_time, index=message.echo.authority_index)
            case "draining":
                is_draining.set()
            case _:
                # A newer KeyVault says something that this release has no use for.
                return

    async def _ping(self, outgoing: asyncio.Queue[WatchAuthorityRequest]) -> None:
        while True:
            ping = WatchPing(monotonic_ns=int(self._clock.monotonic() * _NANOSECONDS))
            outgoing.put_nowait(WatchAuthorityRequest(ping=ping))
            self._authority.forget_old()
            await self._clock.sleep(self._limits.ping_interval)


async def _drain_queue(outgoing: asyncio.Queue[WatchAuthorityRequest]) -> AsyncIterator[WatchAuthorityRequest]:
    while True:
        yield await outgoing.get()


def _cause(stream: asyncio.Task[None]) -> str:
    with contextlib.suppress(asyncio.CancelledError):
        error = stream.exception()
        if isinstance(error, grpc.aio.AioRpcError):
            return error.code().name
        return type(error).__name__ if error is not None else "ENDED"
    return "CANCELLED"
