"""Calls providers over one pooled aiohttp session for each host policy: public hosts, and exempt ones.

It knows HTTP and its bounds; it must not know what a vendor's status or body means.
"""

import io
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from typing_extensions import override
from yarl import URL

from router.domain.errors import (
    AnswerTruncatedError,
    ConnectionLostError,
    KeyRejectedError,
    MalformedAnswerError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnreachableError,
)
from router.domain.refusals import EgressForbiddenError
from router.domain.wire import WireRequest, WireResponse
from router.ports import Attempt, ProviderTransport
from router.transports.egress_guard import EgressPolicy, Endpoint, GuardedResolver, Resolve, guarded_socket
from servicekit.clock import Clock

if TYPE_CHECKING:
    from aiohttp.tracing import Trace

_USER_AGENT = "byok-router/1"
# aiohttp warns of larger bodies given as bytes, because writing them in one piece blocks the loop.
_WHOLE_BODY_BYTES_MAX = 2**20 - 1
_ENDPOINTS_MAX = 4096
_REDIRECTS = 3
_CLIENT_ERROR = 400
_DECODABLE = frozenset({"gzip", "x-gzip", "deflate"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLimits:
    """Bounds of the direct transport."""

    connect_timeout: timedelta
    answer_bytes_max: int
    connections_max: int
    connections_per_host_max: int
    idle_timeout: timedelta


@dataclass(slots=True)
class _Exchange:
    """Where one request stands: asked before its first byte, and then known to have been sent."""

    before_first_byte: Callable[[], None]
    is_sent: bool = False


# The connector learns through it which request the connection is for: aiohttp offers no other place
# between "connected" and "written", and a TLS handshake takes longer than a revocation may wait.
_exchange: ContextVar[_Exchange] = ContextVar("router_exchange")


class _GatedConnector(aiohttp.TCPConnector):
    """A connector that asks whether the call may still be made once its connection stands."""

    @override
    async def connect(
        self, req: aiohttp.ClientRequest, traces: "list[Trace]", timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        connection = await super().connect(req, traces, timeout)
        exchange = _exchange.get()
        try:
            exchange.before_first_byte()
        except BaseException:
            # Nothing was written: the connection is as good as new for another call.
            connection.release()
            raise
        exchange.is_sent = True
        return connection


@dataclass(frozen=True, slots=True)
class _Target:
    url: URL
    session: aiohttp.ClientSession


class DirectTransport(ProviderTransport):
    """The provider transport on aiohttp, behind the egress guard."""

    def __init__(
        self,
        *,
        policy: EgressPolicy,
        limits: TransportLimits,
        clock: Clock,
        public: aiohttp.ClientSession,
        exempt: aiohttp.ClientSession,
    ) -> None:
        """Use `public` for hosts under the full guard and `exempt` for those of the operator's allow-list."""
        self._policy = policy
        self._limits = limits
        self._clock = clock
        self._public = public
        self._exempt = exempt
        self._targets: dict[str, _Target] = {}
        self._connect_timeout = limits.connect_timeout.total_seconds()

    @override
    async def send(self, request: WireRequest, attempt: Attempt, /) -> WireResponse:
        target = self._target(request.url)
        headers = _headers(request, attempt)
        remaining = attempt.deadline - self._clock.monotonic()
        if remaining <= 0:
            raise ProviderUnreachableError(provider=attempt.provider, rule="deadline_before_sending")
        exchange = _Exchange(attempt.before_first_byte)
        token = _exchange.set(exchange)
        body = request.body
        try:
            response = await target.session.request(
                request.method,
                target.url,
                headers=headers,
                data=None if not body else body if len(body) <= _WHOLE_BODY_BYTES_MAX else io.BytesIO(body),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=remaining, sock_connect=self._connect_timeout),
            )
            try:
                return await self._read(response, attempt.provider)
            finally:
                # After a whole body this gives the connection back; before its end it closes it, so that a
                # caller who hangs up also stops the provider.
                response.close()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            failure = _failure(error, attempt.provider, is_sent=exchange.is_sent)
        finally:
            _exchange.reset(token)
        # Raised outside of the handler: aiohttp's exceptions carry the request's headers, and so the key,
        # which must not hang on a context that somebody prints.
        raise failure

    def _target(self, url: str) -> _Target:
        target = self._targets.get(url)
        if target is None:
            endpoint = self._policy.endpoint(url)
            target = _Target(_parsed(url, endpoint), self._exempt if endpoint.is_exempt else self._public)
            if len(self._targets) >= _ENDPOINTS_MAX:
                self._targets.clear()
            self._targets[url] = target
        return target

    async def _read(self, response: aiohttp.ClientResponse, provider: str) -> WireResponse:
        receive_time = self._clock.now()
        if response.status // 100 == _REDIRECTS:
            raise EgressForbiddenError("The provider answered with a redirect, which is not followed.", rule="REDIRECT")
        limit = self._limits.answer_bytes_max
        if (response.content_length or 0) > limit:
            raise MalformedAnswerError(provider=provider, rule="answer_too_large", status=response.status)
        chunks: list[bytes] = []
        size = 0
        while chunk := await response.content.readany():
            size += len(chunk)
            if size > limit:
                raise MalformedAnswerError(provider=provider, rule="answer_too_large", status=response.status)
            chunks.append(chunk)
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if body and encoding not in {"identity", ""}:
            try:
                body = _decompress(body, encoding, limit=limit, provider=provider)
            except ProviderError:
                # Of an error, the status says enough; what it says must not turn into an answer that was billed.
                if response.status < _CLIENT_ERROR:
                    raise
                body = b""
        return WireResponse(status=response.status, headers=response.headers, body=body, receive_time=receive_time)


@asynccontextmanager
async def open_direct_transport(
    *,
    allowed_hosts: tuple[str, ...],
    limits: TransportLimits,
    clock: Clock,
    extra_ca_file: Path | None = None,
    resolve: Resolve | None = None,
) -> AsyncIterator[DirectTransport]:
    """Open both sessions, and close them with all their connections at the end."""
    inner = aiohttp.ThreadedResolver()
    tls = ssl.create_default_context()
    if extra_ca_file is not None:
        tls.load_verify_locations(cafile=extra_ca_file)

    async def ask_dns(host: str, port: int) -> list[aiohttp.abc.ResolveResult]:
        # Left out, the family is IPv4, and a network of IPv6 alone would reach nobody.
        return await inner.resolve(host, port, socket.AF_UNSPEC)

    guarded = _GatedConnector(
        resolver=GuardedResolver(resolve or ask_dns),
        socket_factory=guarded_socket,
        ssl=tls,
        # Each connection resolves and checks anew; connections are pooled, so that this is rare.
        use_dns_cache=False,
        limit=limits.connections_max,
        limit_per_host=limits.connections_per_host_max,
        keepalive_timeout=limits.idle_timeout.total_seconds(),
    )
    plain = _GatedConnector(
        ssl=tls,
        limit=limits.connections_max,
        limit_per_host=limits.connections_per_host_max,
        keepalive_timeout=limits.idle_timeout.total_seconds(),
    )
    async with AsyncExitStack() as stack:
        public = await stack.enter_async_context(_session(guarded))
        exempt = await stack.enter_async_context(_session(plain))
        yield DirectTransport(
            policy=EgressPolicy(allowed_hosts), limits=limits, clock=clock, public=public, exempt=exempt
        )


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        # Decompressed by us, with a bound; nothing is taken from the environment (proxies, netrc).
        auto_decompress=False,
        trust_env=False,
        headers={"user-agent": _USER_AGENT, "accept-encoding": "identity"},
    )


def _headers(request: WireRequest, attempt: Attempt) -> dict[str, str]:
    headers = dict(request.headers)
    if request.auth is not None and attempt.secret is not None:
        try:
            value = request.auth.prefix + attempt.secret.reveal().decode("ascii")
        except UnicodeDecodeError:
            value = "\n"
        if not value.isprintable():
            raise KeyRejectedError(provider=attempt.provider, rule="unsendable_key")
        headers[request.auth.header] = value
    return headers


def _parsed(url: str, endpoint: Endpoint) -> URL:
    """Return the URL as aiohttp reads it, which must lead where the guard was told."""
    try:
        parsed = URL(url, encoded=True)
    except ValueError:
        parsed = URL()
    if ((parsed.raw_host or "").lower(), parsed.port) != (endpoint.host, endpoint.port):
        raise EgressForbiddenError("The address can be read in two ways.", rule="SYNTAX")
    return parsed


def _decompress(body: bytes, encoding: str, *, limit: int, provider: str) -> bytes:
    if encoding not in _DECODABLE:
        raise MalformedAnswerError(provider=provider, rule="unknown_content_encoding")
    # 32 + 15: zlib finds out by itself whether gzip or zlib wraps the data.
    decompressor = zlib.decompressobj(wbits=47)
    try:
        plain = decompressor.decompress(body, limit + 1)
    except zlib.error:
        raise MalformedAnswerError(provider=provider, rule="broken_compression") from None
    if len(plain) > limit:
        raise MalformedAnswerError(provider=provider, rule="decompression_bomb")
    if not decompressor.eof:
        raise AnswerTruncatedError(provider=provider, rule="compression_cut_off")
    return plain


def _failure(error: Exception, provider: str, *, is_sent: bool) -> ProviderError | EgressForbiddenError:
    """Say in the domain's words what went wrong, by whether anything had been sent."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, EgressForbiddenError):
            return EgressForbiddenError(cause.message, rule=cause.rule)
        cause = cause.__cause__ or cause.__context__
    if not is_sent:
        rule = "connect_timeout" if isinstance(error, TimeoutError) else "no_connection"
        return ProviderUnreachableError(provider=provider, rule=rule)
    if isinstance(error, TimeoutError):
        return ProviderTimeoutError(provider=provider, rule="answer_timeout")
    if isinstance(error, aiohttp.ClientPayloadError):
        return AnswerTruncatedError(provider=provider, rule="body_cut_off")
    if isinstance(error, aiohttp.ClientResponseError | ValueError):
        return MalformedAnswerError(provider=provider, rule="no_http")
    return ConnectionLostError(provider=provider, rule="connection_lost")
