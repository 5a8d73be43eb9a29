"""The direct transport against servers that misbehave on the wire."""

import asyncio
import gzip
import socket
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aiohttp.abc import ResolveResult
from typing_extensions import override

from router.domain.errors import (
    AnswerTruncatedError,
    ConnectionLostError,
    KeyRejectedError,
    MalformedAnswerError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnreachableError,
)
from router.domain.refusals import EgressForbiddenError, LeaseEndedError
from router.domain.wire import AuthScheme, WireRequest, WireResponse
from router.ports import Attempt
from router.transports.direct import DirectTransport, TransportLimits, open_direct_transport
from servicekit.clock import SystemClock
from servicekit.secrets import Secret

CANARY = "sk-canary-4bd1f0c7e2"
ENDLESS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + (b"8000\r\n" + b"a" * 32_768 + b"\r\n") * 8
CLOCK = SystemClock()
LIMITS = TransportLimits(
    connect_timeout=timedelta(seconds=2),
    answer_bytes_max=100_000,
    connections_max=50,
    connections_per_host_max=50,
    idle_timeout=timedelta(seconds=10),
)
Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Provider:
    """A TCP server that reads one request and then does what a test says; it keeps what it read."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[bytes] = []
        self.connections = 0
        self.gone = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
                )
                body = await reader.readexactly(length)
                self.requests.append(head + body)
                await self.handler(body, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()


@asynccontextmanager
async def provider(handler: Handler) -> AsyncIterator[Provider]:
    """Run a misbehaving server on a free port."""
    running = Provider(handler)
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()


@asynccontextmanager
async def transport_to(port: int, **changes: Any) -> AsyncIterator[DirectTransport]:
    """Open a transport that may reach one port of this machine."""
    async with open_direct_transport(
        allowed_hosts=(f"127.0.0.1:{port}",), limits=LIMITS, clock=CLOCK, **changes
    ) as transport:
        yield transport


def request(port: int, *, url: str = "", body: bytes = b'{"x":1}') -> WireRequest:
    """Make a plain request to a local port."""
    return WireRequest(
        method="POST",
        url=url or f"http://127.0.0.1:{port}/v1/chat",
        headers={"content-type": "application/json"},
        body=body,
        auth=AuthScheme(header="authorization", prefix="Bearer "),
    )


def attempt(*, seconds: float = 5.0, secret: str = CANARY, gate: Callable[[], None] = lambda: None) -> Attempt:
    """Make an attempt that may last so long."""
    return Attempt(
        provider="simulated",
        secret=Secret(secret),
        deadline=CLOCK.monotonic() + seconds,
        before_first_byte=gate,
        classify=lambda _: ProviderUnreachableError(provider="simulated", rule="unused"),
        on_retry=lambda _: None,
    )


def answer(body: bytes, *, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    """Write one HTTP answer."""
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\ncontent-length: {size}\r\n{headers}\r\n".encode() + body


def replying(reply: bytes) -> Handler:
    """Make a handler that always writes `reply`."""

    async def handle(_body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)

    return handle


def closing_after(reply: bytes) -> Handler:
    """Make a handler that writes `reply` and closes."""

    async def handle(_body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        await writer.drain()
        writer.close()

    return handle


async def stall(_body: bytes, _writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.Event().wait()


async def send_to(handler: Handler, *, seconds: float = 5.0) -> WireResponse:
    """Send one request to a server that behaves like `handler`."""
    async with provider(handler) as server, transport_to(server.port) as transport:
        return await transport.send(request(server.port), attempt(seconds=seconds))


async def test_a_whole_answer_comes_back_with_status_headers_and_body() -> None:
    """An answer is handed on as it is, also one that is an error, and the key went in the header that was named."""
    async with provider(replying(answer(b"nope", status="429 Slow Down", headers="Retry-After: 3\r\n"))) as server:
        async with transport_to(server.port) as transport:
            response = await transport.send(request(server.port), attempt())
        assert (response.status, response.body) == (429, b"nope")
        assert response.headers.get("retry-after") == "3"
        assert f"authorization: Bearer {CANARY}\r\n".encode().lower() in server.requests[0].lower()
        assert b"accept-encoding: identity" in server.requests[0].lower()


async def test_connections_are_kept_and_used_again() -> None:
    """Ten calls in a row take one connection."""
    async with provider(replying(answer(b"{}"))) as server, transport_to(server.port) as transport:
        for _ in range(10):
            await transport.send(request(server.port), attempt())
        assert (server.connections, len(server.requests)) == (1, 10)


@pytest.mark.parametrize(
    ("handler", "failure"),
    [
        (closing_after(b""), ConnectionLostError),
        (closing_after(b"HTTP/1.1 200 OK\r\ncontent-le"), ConnectionLostError),
        (closing_after(answer(b"half", length=400)), AnswerTruncatedError),
        (closing_after(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"), AnswerTruncatedError),
        (replying(b"\x16\x03\x01 this is no HTTP\r\n\r\n"), MalformedAnswerError),
        (replying(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 20_000 + b"\r\n\r\n"), MalformedAnswerError),
        (replying(answer(b"a" * 200_000)), MalformedAnswerError),
        (replying(ENDLESS), MalformedAnswerError),
        (
            replying(answer(gzip.compress(b"0" * 50_000_000), headers="content-encoding: gzip\r\n")),
            MalformedAnswerError,
        ),
        (
            replying(answer(zlib.compress(b"0" * 50_000_000), headers="content-encoding: deflate\r\n")),
            MalformedAnswerError,
        ),
        (replying(answer(gzip.compress(b"0" * 999)[:-9], headers="content-encoding: gzip\r\n")), AnswerTruncatedError),
        (replying(answer(b"not gzip", headers="content-encoding: gzip\r\n")), MalformedAnswerError),
        (replying(answer(b"????", headers="content-encoding: br\r\n")), MalformedAnswerError),
    ],
)
async def test_a_broken_answer_is_a_typed_failure_that_may_have_been_billed(
    handler: Handler, failure: type[ProviderError]
) -> None:
    """Cut, oversized, bomb-like and nonsensical answers fail by name, and never release their hold."""
    with pytest.raises(failure) as failed:
        await send_to(handler)
    assert failed.value.may_have_been_billed


async def test_a_compressed_answer_within_its_bound_is_read() -> None:
    """A vendor that compresses although nobody asked is understood."""
    response = await send_to(replying(answer(gzip.compress(b'{"a":1}'), headers="content-encoding: gzip\r\n")))
    assert response.body == b'{"a":1}'


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("body", [b"", b"not compressed at all"])
async def test_an_error_that_cannot_be_decompressed_keeps_its_status(encoding: str, body: bytes) -> None:
    """A gateway's page in an encoding nobody asked for is still its refusal, and no answer that was billed."""
    reply = answer(body, status="429 Slow Down", headers=f"content-encoding: {encoding}\r\nretry-after: 3\r\n")
    response = await send_to(replying(reply))
    assert (response.status, response.body, response.headers["Retry-After"]) == (429, b"", "3")


async def test_an_empty_answer_needs_no_decompressing() -> None:
    """A success without a body is handed on as it is, whatever its encoding says."""
    assert (await send_to(replying(answer(b"", headers="content-encoding: gzip\r\n")))).body == b""


async def test_an_address_that_reads_in_two_ways_is_refused_in_our_own_words() -> None:
    """Brackets around another host neither reach an exempt server nor raise what nobody expects."""
    async with provider(replying(answer(b"{}"))) as server, transport_to(server.port) as transport:
        for url in (f"http://10.0.0.5[127.0.0.1]:{server.port}/", f"http://[::1]127.0.0.1:{server.port}/"):
            with pytest.raises(EgressForbiddenError) as refused:
                await transport.send(request(0, url=url), attempt())
            assert refused.value.rule == "SYNTAX"
        assert server.connections == 0


async def test_a_redirect_is_refused_and_not_followed() -> None:
    """Whatever a provider redirects to is never asked."""
    async with provider(replying(answer(b"", status="307 Go", headers="location: http://127.0.0.1:1/\r\n"))) as server:
        async with transport_to(server.port) as transport:
            with pytest.raises(EgressForbiddenError) as refused:
                await transport.send(request(server.port), attempt())
        assert refused.value.rule == "REDIRECT"
        assert len(server.requests) == 1


async def test_a_provider_that_stalls_is_given_up_at_the_deadline() -> None:
    """The call ends at its own deadline and may have been billed."""
    with pytest.raises(ProviderTimeoutError):
        await send_to(stall, seconds=0.2)


async def test_a_provider_that_drips_is_given_up_at_the_deadline() -> None:
    """Bytes that keep coming do not extend the time."""

    async def drip(_body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 50000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.02)

    with pytest.raises(ProviderTimeoutError):
        await send_to(drip, seconds=0.3)


async def test_nobody_listening_is_unreachable_and_unbilled() -> None:
    """A refused connection was never sent."""
    async with provider(stall) as server:
        port = server.port
    async with transport_to(port) as transport:
        with pytest.raises(ProviderUnreachableError) as failed:
            await transport.send(request(port), attempt())
    assert not failed.value.may_have_been_billed


async def test_no_time_left_sends_nothing() -> None:
    """A deadline in the past never opens a connection."""
    async with provider(stall) as server, transport_to(server.port) as transport:
        with pytest.raises(ProviderUnreachableError):
            await transport.send(request(server.port), attempt(seconds=-1))
        assert server.connections == 0


async def test_the_gate_is_asked_after_connecting_and_before_the_first_byte() -> None:
    """A lease that ends while the connection is made stops the call; the connection stays usable."""

    def ended() -> None:
        raise LeaseEndedError(rule="revoked")

    async with provider(replying(answer(b"{}"))) as server, transport_to(server.port) as transport:
        with pytest.raises(LeaseEndedError):
            await transport.send(request(server.port), attempt(gate=ended))
        assert server.requests == []
        await transport.send(request(server.port), attempt())
        assert (server.connections, len(server.requests)) == (1, 1)


async def test_a_caller_who_hangs_up_hangs_up_on_the_provider() -> None:
    """Cancelling the call closes the connection, so that the provider stops working."""
    arrived = asyncio.Event()

    async def note_and_say_nothing(_body: bytes, _writer: asyncio.StreamWriter) -> None:
        arrived.set()

    async with provider(note_and_say_nothing) as server, transport_to(server.port) as transport:
        call = asyncio.create_task(transport.send(request(server.port), attempt()))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(server.gone.wait(), 5)


@pytest.mark.parametrize("secret", ["sk-a\r\nx-evil: 1", "sk-\x00", "sk-é", "sk-\u202e"])
async def test_a_key_that_no_header_may_hold_is_rejected_unsent(secret: str) -> None:
    """CR, LF, NUL and non-ASCII in a key never reach the wire, nor the failure's text."""
    async with provider(replying(answer(b"{}"))) as server, transport_to(server.port) as transport:
        with pytest.raises(KeyRejectedError) as failed:
            await transport.send(request(server.port), attempt(secret=secret))
        assert secret not in str(failed.value)
        assert server.connections == 0


async def test_a_body_above_a_mebibyte_is_sent_whole() -> None:
    """Large bodies go out unchanged."""
    async with provider(replying(answer(b"{}"))) as server, transport_to(server.port) as transport:
        body = b"x" * 3_000_000
        await transport.send(request(server.port, body=body), attempt())
        assert server.requests[0].endswith(body)


class _Rebinding(dict[str, Any]):
    """A resolver's answer that is public when looked at first, and private afterwards."""

    def __init__(self, port: int) -> None:
        super().__init__(hostname="api.example.com", port=port, family=socket.AF_INET, proto=0, flags=0)
        self.looks = 0

    @override
    def __getitem__(self, name: str) -> Any:
        if name != "host":
            return super().__getitem__(name)
        self.looks += 1
        return "8.8.8.8" if self.looks == 1 else "127.0.0.1"


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("8.8.8.8", "127.0.0.1"), ("::ffff:127.0.0.1",)])
async def test_a_lying_resolver_leads_nowhere(addresses: tuple[str, ...]) -> None:
    """A public name that resolves inside is refused, and the server inside hears nothing."""

    async def lying(host: str, port: int) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=each, port=port, family=socket.AF_INET, proto=0, flags=0)
            for each in addresses
        ]

    async with provider(replying(answer(b"{}"))) as server, transport_to(1, resolve=lying) as transport:
        with pytest.raises(EgressForbiddenError) as refused:
            await transport.send(request(0, url=f"https://api.example.com:{server.port}/v1"), attempt())
        assert refused.value.rule == "ADDRESS"
        assert server.connections == 0


async def test_a_name_that_is_rebound_between_look_and_connect_leads_nowhere() -> None:
    """The socket layer looks again, so that a second answer cannot replace the first."""

    async def rebinding(_host: str, port: int) -> list[ResolveResult]:
        return [_Rebinding(port)]  # type: ignore[list-item]  # behaves like the mapping that aiohttp reads

    async with provider(replying(answer(b"{}"))) as server, transport_to(1, resolve=rebinding) as transport:
        with pytest.raises(EgressForbiddenError):
            await transport.send(request(0, url=f"https://api.example.com:{server.port}/v1"), attempt())
        assert server.connections == 0


async def test_failures_never_name_the_key() -> None:
    """No failure of the transport, nor anything chained to it, mentions the key."""
    for handler in (closing_after(b""), replying(b"garbage\r\n\r\n"), closing_after(answer(b"x", length=9))):
        with pytest.raises(ProviderError) as failed:
            await send_to(handler)
        chain: BaseException | None = failed.value
        while chain is not None:
            assert CANARY not in repr(chain)
            assert CANARY not in str(vars(chain))
            chain = chain.__cause__ or chain.__context__
