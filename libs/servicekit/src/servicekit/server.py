"""The gRPC server of a service: mutual TLS, an access policy, one guard around every call, health, reflection, drain.

    async with GrpcServer(settings.server, policy=policy, errors=TABLE, metrics=metrics, services=[
        ServedService(add_KeyServiceServicer_to_server, servicer, "byok.keyvault.v1.KeyService"),
    ]) as server:
        server.port …

Leaving the block drains: health says NOT_SERVING, calls under way may end, streams are told to come back elsewhere,
and then every drain hook is awaited, such as the one that waits until settlements are durable.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from servicekit.credentials import CertificateFiles, TlsMaterial
from servicekit.dispatch import Dispatcher, DispatchLimits
from servicekit.identity import AccessPolicy
from servicekit.metrics import Metrics
from servicekit.refusals import Refusal, RefusalReporter
from servicekit.settings import ServerSettings
from servicekit.tracing import Tracer
from servicekit.wire import ErrorTable

_log = structlog.get_logger("servicekit.server")

HEALTH_SERVICE: Final = "grpc.health.v1.Health"
REFLECTION_SERVICE: Final = "grpc.reflection.v1alpha.ServerReflection"

_MILLISECONDS: Final = timedelta(milliseconds=1)
_AGE_GRACE: Final = timedelta(minutes=1)
# Clients of the suite ping every 20 s; gRPC's default would call that abuse and close the connection.
_PING_INTERVAL_MIN: Final = timedelta(seconds=10)
_STREAMS_END_WITHIN_S: Final = 1.0
_ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024

DrainHook = Callable[[], Awaitable[None]]


class ServedService(NamedTuple):
    """A servicer, the generated function that adds it to a server, and the service's full name."""

    add: Callable[[Any, Any], None]
    servicer: object
    name: str


class GrpcServer:
    """The server of one process; an async context manager."""

    def __init__(  # noqa: PLR0913 (what a server is wired from; keyword-only)
        self,
        settings: ServerSettings,
        *,
        policy: AccessPolicy,
        errors: ErrorTable,
        metrics: Metrics,
        services: Sequence[ServedService | tuple[Callable[[Any, Any], None], object, str]],
        tracer: Tracer | None = None,
        on_refusal: Callable[[Refusal], None] | None = None,
        drain_hooks: Sequence[DrainHook] = (),
        message_bytes_max: Mapping[str, int] | None = None,
    ) -> None:
        """Make a server.

        Args:
            settings: Address, identity and bounds.
            policy: Who may call what.
            errors: How errors travel.
            metrics: Where calls are counted.
            services: What is served.
            tracer: Starts spans, where tracing is on.
            on_refusal: Gets refused calls, coalesced, for the audit. Must not block.
            drain_hooks: Awaited after the last call has ended, each at most `drain_grace`.
            message_bytes_max: The largest request of an RPC (`package.Service/Method`), where it is not the default.
        """
        self._settings = settings
        self._services = [ServedService(*each) for each in services]
        self._sizes = dict(message_bytes_max or {})
        self._hooks = list(drain_hooks)
        self._refusals = RefusalReporter(on_refusal) if on_refusal else None
        limits = DispatchLimits(
            deadline_default=settings.deadline_default.total_seconds(),
            deadline_max=settings.deadline_max.total_seconds(),
            deadline_margin=settings.deadline_margin.total_seconds(),
            concurrent_calls_max=settings.concurrent_calls_max,
            log_successes=settings.log_successes,
        )
        self._dispatcher = Dispatcher(
            policy=policy.within(settings.trust_domain),
            errors=errors,
            limits=limits,
            metrics=metrics,
            refusals=self._refusals,
            tracer=tracer,
        )
        self._health = HealthServicer()
        self._certificates = CertificateFiles(settings.tls.files())
        self._server: grpc.aio.Server | None = None
        self._is_drained = False
        self._handshakes = metrics.counter("grpc_handshakes_started_total", "TLS handshakes that clients began.")
        self._describe(metrics)
        self.port = 0

    @property
    def active_calls(self) -> int:
        """How many unary calls are being served; what a coalescer behind the server takes as its `active`."""
        return self._dispatcher.active_calls

    @property
    def is_serving(self) -> bool:
        """Whether new work is welcome."""
        return self._server is not None and not self._is_drained and not self._dispatcher.is_draining

    def add_drain_hook(self, hook: DrainHook) -> None:
        """Await `hook` while draining, after the hooks that are there already."""
        self._hooks.append(hook)

    async def __aenter__(self) -> Self:
        """Start listening; `port` is then the real one."""
        server = grpc.aio.server(options=self._options())
        for service in self._services:
            self._add(server, service, any_role=False)
        await self._add_own_services(server)
        credentials = grpc.dynamic_ssl_server_credentials(
            _configuration(self._certificates.material), self._fetch_configuration, require_client_authentication=True
        )
        self.port = server.add_secure_port(self._settings.listen, credentials)
        await server.start()
        self._server = server
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drain, unless that was done, and stop."""
        await self.drain()

    async def drain(self) -> None:
        """Stop in an orderly way: no new calls, then no open calls, then nothing undurable. May be called again."""
        if self._server is None or self._is_drained:
            return
        self._is_drained = True
        try:
            await self._health.enter_graceful_shutdown()
            await asyncio.sleep(self._settings.drain_notice.total_seconds())
            await self._end_calls(self._server)
        finally:
            # Also when the drain itself was cancelled: no port stays open, and whoever waits learns it.
            await self._server.stop(0)
            self._server = None
        await self._run_hooks()
        if self._refusals is not None:
            self._refusals.flush()

    async def _end_calls(self, server: grpc.aio.Server) -> None:
        grace = self._settings.drain_grace.total_seconds()
        stopping = asyncio.create_task(server.stop(grace + _STREAMS_END_WITHIN_S))
        try:
            async with asyncio.timeout(grace):
                await self._dispatcher.wait_idle()
        except TimeoutError:
            _log.warning("server.drain_incomplete", calls=self._dispatcher.active_calls)
        self._dispatcher.end_streams()
        await stopping

    async def _run_hooks(self) -> None:
        grace = self._settings.drain_grace.total_seconds()
        for hook in self._hooks:
            try:
                async with asyncio.timeout(grace):
                    await hook()
            except Exception:  # noqa: BLE001 (see below)
                # The next hook may be the one that waits for settlements: it gets its time whatever happened to this
                # one.
                _log.exception("server.drain_hook_failed", hook=getattr(hook, "__qualname__", type(hook).__name__))

    async def _add_own_services(self, server: grpc.aio.Server) -> None:
        names = [service.name for service in self._services]
        for name in names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        health = ServedService(health_pb2_grpc.add_HealthServicer_to_server, self._health, HEALTH_SERVICE)
        self._add(server, health, any_role=True)
        if self._settings.reflection:
            servicer = ReflectionServicer([*names, HEALTH_SERVICE, REFLECTION_SERVICE])
            add = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
            self._add(server, ServedService(add, servicer, REFLECTION_SERVICE), any_role=True)

    def _add(self, server: grpc.aio.Server, service: ServedService, *, any_role: bool) -> None:
        recorder = _Recorder()
        service.add(service.servicer, recorder)
        guarded = {}
        for name, handler in recorder.handlers.items():
            rpc = f"{service.name}/{name}"
            size = self._sizes.get(rpc, self._settings.message_bytes_max)
            guarded[name] = self._dispatcher.wrap(f"/{rpc}", handler, bytes_max=size, any_role=any_role)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.name, guarded),))

    def _options(self) -> list[tuple[str, int]]:
        settings = self._settings
        largest = max([settings.message_bytes_max, *self._sizes.values()])
        return [
            # Two processes on one port would each get half of the calls; a clash must be an error.
            ("grpc.so_reuseport", 0),
            # The guard refuses what is too large for its RPC with a typed error; past twice that, gRPC cuts it off.
            ("grpc.max_receive_message_length", 2 * largest),
            ("grpc.max_send_message_length", _ANSWER_BYTES_MAX),
            ("grpc.max_concurrent_streams", settings.concurrent_calls_max),
            ("grpc.max_connection_age_ms", settings.connection_age_max // _MILLISECONDS),
            ("grpc.max_connection_age_grace_ms", min(_AGE_GRACE, settings.connection_age_max) // _MILLISECONDS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", _PING_INTERVAL_MIN // _MILLISECONDS),
            # Clients also ping to measure the connection, and a stalled one sends its pings close together. Cutting
            # it off would fail every call under way; who may connect is known by certificate.
            ("grpc.http2.max_ping_strikes", 0),
        ]

    def _fetch_configuration(self) -> Any:
        # gRPC asks at each handshake, from a thread of its own; None keeps what it has.
        self._handshakes.inc()
        material = self._certificates.refresh()
        return None if material is None else _configuration(material)

    def _certificate_expiry(self) -> float:
        return self._certificates.material.expires.timestamp()

    def _describe(self, metrics: Metrics) -> None:
        certificates = self._certificates
        metrics.gauge(
            "grpc_certificate_expiry_seconds",
            "When this server's certificate ends, in Unix time.",
            self._certificate_expiry,
        )
        metrics.gauge(
            "grpc_certificate_reload_failures",
            "Replacements of the certificate that could not be used.",
            lambda: certificates.reload_failures,
        )
        metrics.gauge("grpc_calls_active", "Unary calls being served.", lambda: self.active_calls)
        metrics.gauge("grpc_streams_active", "Streaming calls open.", lambda: self._dispatcher.active_streams)


class _Recorder:
    """Stands in for a server, so that the generated code hands over its handlers instead of registering them."""

    def __init__(self) -> None:
        self.handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Take no note: the registered handlers say the same and can be read."""

    def add_registered_method_handlers(
        self, _service_name: str, method_handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
    ) -> None:
        """Keep the handlers of the service."""
        self.handlers.update(method_handlers)


def _configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.private_key, material.certificate)], root_certificates=material.ca
    )
