"""Channels to other services of the suite: mutual TLS, a deadline on every call, and the newest certificate.

gRPC has no dynamic credentials for clients. So a channel here is a front: it looks at its files from time to time, and
when they were replaced, calls go to a new connection, while those under way end on the old one. Stubs made on it never
notice.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self

import grpc
import structlog
from typing_extensions import override

from servicekit.calls import call_deadline
from servicekit.clock import Clock, SystemClock
from servicekit.credentials import CertificateFiles, TlsMaterial
from servicekit.identity import TlsFiles
from servicekit.tracing import outgoing_metadata

__all__ = ["RotatingChannel", "call_deadline", "open_channel"]

_log = structlog.get_logger("servicekit.channels")

CERTIFICATE_CHECK_INTERVAL: Final = timedelta(seconds=5)
OUTBOUND_DEADLINE_MAX: Final = timedelta(seconds=30)

_OLD_CHANNEL_GRACE: Final = timedelta(minutes=5)
_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    # Retries are decided by callers, who know what is safe; gRPC's own would multiply them.
    ("grpc.enable_retries", 0),
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name the time that connecting and the handshake may take; a loaded peer needs seconds.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # Every channel has connections of its own: sharing them would share the old certificate.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(
    target: str,
    tls: TlsFiles,
    *,
    server_name: str | None = None,
    options: Sequence[tuple[str, int | str]] = (),
    deadline_max: timedelta = OUTBOUND_DEADLINE_MAX,
    clock: Clock | None = None,
) -> "RotatingChannel":
    """Return a channel to `target` under the identity in `tls`.

    Args:
        target: A gRPC target, for example `dns:///keyvault:7000`.
        tls: Certificate, key and CA; may be replaced on disk at any time.
        server_name: The name in the server's certificate, when it is not the target's host.
        options: More channel arguments.
        deadline_max: For unary calls that name no time-out; what is left of the inbound call may make it less.
        clock: Tells when to look at the files again.

    Raises:
        CertificateError: The files cannot be used.
    """
    named = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    return RotatingChannel(
        target,
        CertificateFiles(tls),
        options=[*_OPTIONS, *named, *options],
        deadline_max=deadline_max,
        clock=clock or SystemClock(),
    )


class RotatingChannel(grpc.aio.Channel):
    """A channel whose connection is replaced when its certificate is."""

    def __init__(
        self,
        target: str,
        certificates: CertificateFiles,
        *,
        options: Sequence[tuple[str, int | str]],
        deadline_max: timedelta,
        clock: Clock,
    ) -> None:
        """Open the first connection; `open_channel` is what callers use."""
        self._target = target
        self._certificates = certificates
        self._options = list(options)
        self._clock = clock
        self._check_interval = CERTIFICATE_CHECK_INTERVAL.total_seconds()
        self._next_check = clock.monotonic() + self._check_interval
        self._channel = self._connect(certificates.material)
        self._closing: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        self.deadline_max = deadline_max
        self.generation = 0

    def current(self) -> grpc.aio.Channel:
        """Return the connection for a new call, a new one if the certificate was replaced."""
        now = self._clock.monotonic()
        if now >= self._next_check:
            self._next_check = now + self._check_interval
            material = self._certificates.refresh()
            if material is not None:
                self._swap(material)
        return self._channel

    def _swap(self, material: TlsMaterial) -> None:
        old = self._channel
        self._channel = self._connect(material)
        self.generation += 1
        # Closing waits for the calls under way; nobody awaits it, so the task is held here.
        closing = asyncio.get_running_loop().create_task(old.close(_OLD_CHANNEL_GRACE.total_seconds()))
        self._closing[closing] = old
        closing.add_done_callback(lambda done: self._closing.pop(done, None))
        _log.info("channel.certificate_replaced", target=self._target, expires=material.expires)

    def _connect(self, material: TlsMaterial) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=material.ca, private_key=material.private_key, certificate_chain=material.certificate
        )
        return grpc.aio.secure_channel(self._target, credentials, options=self._options)

    @override
    async def __aenter__(self) -> Self:
        return self

    @override
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()

    @override
    async def close(self, grace: float | None = None) -> None:
        for closing, old in list(self._closing.items()):
            closing.cancel()
            await old.close(grace)
        await self._channel.close(grace)

    @override
    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    @override
    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    @override
    async def channel_ready(self) -> None:
        await self.current().channel_ready()

    @override
    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        return _UnaryCallable(self, lambda channel: channel.unary_unary(*arguments, **named))

    @override
    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        return _StreamCallable(self, lambda channel: channel.unary_stream(*arguments, **named))

    @override
    def stream_unary(self, *arguments: Any, **named: Any) -> Any:
        return _StreamCallable(self, lambda channel: channel.stream_unary(*arguments, **named))

    @override
    def stream_stream(self, *arguments: Any, **named: Any) -> Any:
        return _StreamCallable(self, lambda channel: channel.stream_stream(*arguments, **named))


class _StreamCallable:
    """One streaming method of a stub, on whatever connection is current. Streams keep the deadline they are given."""

    def __init__(self, front: RotatingChannel, bind: Callable[[grpc.aio.Channel], Any]) -> None:
        self._front = front
        self._bind = bind
        self._bound_to: grpc.aio.Channel | None = None
        self._bound: Any = None

    def __call__(self, *arguments: Any, metadata: Any = None, **named: Any) -> Any:
        return self._callable()(*arguments, metadata=_with_trace(metadata), **named)

    def _callable(self) -> Any:
        channel = self._front.current()
        if channel is not self._bound_to:
            self._bound = self._bind(channel)
            self._bound_to = channel
        return self._bound


class _UnaryCallable(_StreamCallable):
    """One unary method of a stub: always with a deadline."""

    @override
    def __call__(self, *arguments: Any, metadata: Any = None, **named: Any) -> Any:
        if named.get("timeout") is None:
            named["timeout"] = call_deadline(self._front.deadline_max)
        return self._callable()(*arguments, metadata=_with_trace(metadata), **named)


def _with_trace(metadata: Any) -> Any:
    trace = outgoing_metadata()
    if not trace:
        return metadata
    return (*(metadata or ()), *trace)
