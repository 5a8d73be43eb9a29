"""Runs the service: what `wiring` puts together, until the process is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from keyvault.api.errors import ERRORS
from keyvault.usecases.record_refusals import RecordRefusal
from keyvault.wiring import audit, emergency, exposure, health, keyring, keys, leases
from keyvault.wiring.base import SERVICE, apply_migrations, open_base
from keyvault.workers.housekeeping import Housekeeping
from servicekit.admin import AdminServer
from servicekit.errors import DomainError
from servicekit.identity import AccessPolicy
from servicekit.ids import REQUEST_ID_AGE_MAX, REQUEST_ID_AHEAD_MAX
from servicekit.process import announce_ready
from servicekit.refusals import Refusal
from servicekit.server import GrpcServer
from servicekit.tracing import make_tracer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from keyvault.settings import Settings
    from keyvault.usecases.acquire_leases import LeaseCall, LeaseOutcome
    from keyvault.usecases.watch_authority import WatchHub
    from keyvault.wiring.base import Base
    from servicekit.coalescer import Coalescer
    from servicekit.metrics import Metrics

__all__ = ["SERVICE", "apply_migrations", "serve"]

ACCESS_FILE: Final = Path(__file__).with_name("access.toml")
# Every service that is served; the access list may name RPCs of these and no others.
DESCRIPTORS: Final = (
    keys.DESCRIPTOR,
    leases.DESCRIPTOR,
    emergency.DESCRIPTOR,
    exposure.DESCRIPTOR,
    audit.DESCRIPTOR,
    keyring.DESCRIPTOR,
)
# A log that is away stops a refused caller no less; it learns of the refusal when it is back.
_REFUSAL_RETRY: Final = timedelta(seconds=1)

_log = structlog.get_logger("keyvault.app")


def _announce(grpc_port: int, admin_port: int) -> None:
    announce_ready(grpc_port=grpc_port, admin_port=admin_port)


async def serve(
    settings: Settings, stop: asyncio.Event, metrics: Metrics, *, announce: Callable[[int, int], None] = _announce
) -> None:
    """Serve until `stop` is set, then drain; `announce` gets the gRPC and admin ports when calls are taken."""
    async with contextlib.AsyncExitStack() as stack:
        base = await open_base(settings, metrics, stack)
        hub = leases.make_hub(base)
        await hub.start()
        housekeeping = _housekeeping(base)
        housekeeping.probe()
        refusals = asyncio.Queue[Refusal](maxsize=1000)
        coalescer = leases.make_coalescer(base)
        tree = audit.make_tree(base, metrics)
        server = _server(base, metrics, hub=hub, coalescer=coalescer, refusals=refusals, tree=tree)
        admin = AdminServer(
            settings.admin,
            readiness=lambda: {
                "serving": server.is_serving,
                "postgres": not hub.is_failing,
                "primary_kek": housekeeping.is_primary_kek_usable,
            },
            registry=metrics.registry,
        )
        _describe(metrics, hub, coalescer, housekeeping)
        await stack.enter_async_context(admin)
        session_dsn = settings.postgres.session_dsn or settings.postgres.dsn
        await stack.enter_async_context(
            base.feed.listening(session_dsn.get_secret_value(), clock=base.clock, retry=settings.postgres.listen_retry)
        )
        workers = [worker.run() for worker in health.make_workers(base, metrics)]
        workers.append(audit.integrating(base, tree).run())
        workers.append(keyring.make_heartbeat(base).run())
        for work in (hub.run(), housekeeping.run(), _record_refusals(base, refusals), *workers):
            await stack.enter_async_context(_running(work, stop))
        await stack.enter_async_context(server)
        announce(server.port, admin.port)
        await stop.wait()
        await hub.drain(min(settings.revocation.handover, settings.server.drain_grace))


def _housekeeping(base: Base) -> Housekeeping:
    return Housekeeping(
        keyring=base.keyring,
        store=base.authority,
        clock=base.clock,
        interval=base.settings.housekeeping_interval,
        # An id can be repeated until it is too old by its own time, which may lie ahead of the arrival.
        requests_kept=REQUEST_ID_AGE_MAX + 2 * REQUEST_ID_AHEAD_MAX,
    )


def _server(
    base: Base,
    metrics: Metrics,
    *,
    hub: WatchHub,
    coalescer: Coalescer[LeaseCall, list[LeaseOutcome]],
    refusals: asyncio.Queue[Refusal],
    tree: audit.Tree,
) -> GrpcServer:
    return GrpcServer(
        base.settings.server,
        policy=AccessPolicy.load(ACCESS_FILE, services=DESCRIPTORS),
        errors=ERRORS,
        metrics=metrics,
        services=[
            keys.serve_keys(base),
            leases.serve_leases(base, metrics, hub=hub, coalescer=coalescer),
            emergency.serve_emergency(base),
            exposure.serve_exposure(base),
            keyring.serve_keyring(base),
            audit.serve_audit(base, tree),
        ],
        tracer=make_tracer(SERVICE, base.settings.telemetry),
        on_refusal=lambda refusal: _enqueue(refusals, refusal),
        drain_hooks=[coalescer.aclose, refusals.join],
    )


def _enqueue(refusals: asyncio.Queue[Refusal], refusal: Refusal) -> None:
    try:
        refusals.put_nowait(refusal)
    except asyncio.QueueFull:
        # Reports are one per caller, RPC and window already; beyond a thousand of those, the metric has to do.
        _log.error("refusal.not_recorded", caller=refusal.caller, method=refusal.method)


async def _record_refusals(base: Base, refusals: asyncio.Queue[Refusal]) -> None:
    record = RecordRefusal(base.authority, base.clock, retry=_REFUSAL_RETRY)
    while True:
        refusal = await refusals.get()
        try:
            await record(caller=refusal.caller, rpc=refusal.method, count=refusal.count)
        except DomainError as error:
            _log.error("refusal.not_recorded", caller=refusal.caller, method=refusal.method, error=str(error))
        finally:
            refusals.task_done()


def _describe(
    metrics: Metrics,
    hub: WatchHub,
    coalescer: Coalescer[LeaseCall, list[LeaseOutcome]],
    housekeeping: Housekeeping,
) -> None:
    metrics.gauge("watchers", "Routers that watch this replica.", lambda: hub.watchers)
    metrics.gauge("watch_position_index", "Audit index up to which watchers were told.", lambda: hub.position)
    metrics.gauge("lease_calls_queued", "AcquireLeases calls that wait for a batch.", lambda: coalescer.queued)
    metrics.gauge("canaries_failing", "Key versions whose canary does not open.", lambda: housekeeping.failing_canaries)


@contextlib.asynccontextmanager
async def _running(work: Coroutine[None, None, None], stop: asyncio.Event) -> AsyncIterator[None]:
    """Run `work` while the context lasts. If it ends by itself, this process must not go on as if it were there."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
