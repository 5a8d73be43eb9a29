"""Wires settings, adapters, use cases and servicers, and runs them until the process is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from byok.keyvault.v1 import key_service_pb2, key_service_pb2_grpc, lease_service_pb2, lease_service_pb2_grpc
from catalogue.book import load_catalogue
from keyvault.adapters.catalogue_capabilities import CatalogueCapabilities
from keyvault.adapters.metric_alarms import MetricAlarms
from keyvault.adapters.postgres.authority import PostgresAuthority
from keyvault.adapters.postgres.feed import PostgresFeed, PostgresWatcherRegistry
from keyvault.adapters.postgres.keyring import PostgresKeyringStore
from keyvault.adapters.postgres.pool import Database, PostgresOptions, open_database
from keyvault.adapters.postgres.schema import check_schema, grant, migrate
from keyvault.adapters.root_keys.file import read_root_key
from keyvault.api.errors import ERRORS
from keyvault.api.key_servicer import KeyServicer, KeyUseCases
from keyvault.api.lease_servicer import LeaseServicer, LeaseUseCases
from keyvault.domain.leases import DistinctKeyBound
from keyvault.domain.provider_keys import CoolDowns
from keyvault.settings import Settings
from keyvault.usecases.acquire_leases import AcquireLeases, GrantedLease, LeaseCall, LeaseOutcome, NoLease
from keyvault.usecases.agent_bindings import AgentBindings
from keyvault.usecases.bind_agent import BindAgent
from keyvault.usecases.change_provider_keys import ProviderKeys
from keyvault.usecases.check_base_url import CheckBaseUrl
from keyvault.usecases.create_provider_key import CreateProviderKey, PrepareKey
from keyvault.usecases.hold_keyring import HoldKeyring
from keyvault.usecases.open_submission import OpenSubmission
from keyvault.usecases.read_provider_keys import GetProviderKey, ListProviderKeys
from keyvault.usecases.record_refusals import RecordRefusal
from keyvault.usecases.replace_secret import ReplaceSecret
from keyvault.usecases.report_corruption import ReportCorruption
from keyvault.usecases.report_outcomes import ReportOutcomes
from keyvault.usecases.report_validation import ReportValidation
from keyvault.usecases.revoke_provider_key import AwaitWatchers, RevokeProviderKey
from keyvault.usecases.update_provider_key import UpdateProviderKey
from keyvault.usecases.verify_rows import VerifyRows
from keyvault.usecases.watch_authority import WatchHub, WatchLimits
from keyvault.usecases.write_authority import WindowLimits, WriteBinding, WriteKey
from keyvault.workers.housekeeping import Housekeeping
from servicekit.admin import AdminServer
from servicekit.clock import Clock, SystemClock
from servicekit.coalescer import Coalescer, CoalescerLimits
from servicekit.errors import DomainError
from servicekit.identity import AccessPolicy
from servicekit.ids import REQUEST_ID_AGE_MAX, REQUEST_ID_AHEAD_MAX
from servicekit.process import announce_ready
from servicekit.refusals import Refusal
from servicekit.server import GrpcServer, ServedService
from servicekit.tracing import make_tracer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from servicekit.metrics import Metrics

SERVICE: Final = "keyvault"
ACCESS_FILE: Final = Path(__file__).with_name("access.toml")

_log = structlog.get_logger("keyvault.app")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """What everything else stands on."""

    settings: Settings
    clock: Clock
    database: Database
    authority: PostgresAuthority
    feed: PostgresFeed
    registry: PostgresWatcherRegistry
    keyring: HoldKeyring
    verify: VerifyRows
    capabilities: CatalogueCapabilities
    alarms: MetricAlarms


def _announce(grpc_port: int, admin_port: int) -> None:
    announce_ready(grpc_port=grpc_port, admin_port=admin_port)


async def apply_migrations(settings: Settings) -> None:
    """Bring the database to the schema of this release, and grant the serving role what it needs."""
    for name in await migrate(settings.postgres.dsn.get_secret_value()):
        _log.info("schema.migrated", migration=name)
    role = settings.postgres.serving_role
    if role is not None:
        await grant(settings.postgres.dsn.get_secret_value(), role)
        _log.info("schema.granted", role=role)


async def serve(
    settings: Settings, stop: asyncio.Event, metrics: Metrics, *, announce: Callable[[int, int], None] = _announce
) -> None:
    """Serve until `stop` is set, then drain; `announce` gets the gRPC and admin ports when calls are taken."""
    async with contextlib.AsyncExitStack() as stack:
        base = await _open(settings, metrics, stack)
        hub = _hub(base)
        await hub.start()
        housekeeping = _housekeeping(base)
        housekeeping.probe()
        refusals = asyncio.Queue[Refusal](maxsize=1000)
        coalescer = _coalescer(base)
        server = _server(base, metrics, hub=hub, coalescer=coalescer, refusals=refusals)
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
        for work in (hub.run(), housekeeping.run(), _record_refusals(base, refusals)):
            await stack.enter_async_context(_running(work, stop))
        await stack.enter_async_context(server)
        announce(server.port, admin.port)
        await stop.wait()
        hub.drain(settings.server.drain_grace)


async def _open(settings: Settings, metrics: Metrics, stack: contextlib.AsyncExitStack) -> _Base:
    clock = SystemClock()
    root = read_root_key(settings.root_key.file)
    if settings.migrate_on_start:
        await apply_migrations(settings)
    postgres = settings.postgres
    database = await stack.enter_async_context(
        open_database(
            PostgresOptions(
                dsn=postgres.dsn.get_secret_value(),
                pool_min=min(postgres.pool_min, postgres.pool_max),
                pool_max=postgres.pool_max,
                connect_timeout=postgres.connect_timeout,
                statement_timeout=postgres.statement_timeout,
            )
        )
    )
    await check_schema(database)
    keyring = HoldKeyring(PostgresKeyringStore(database), root=root, deployment=settings.deployment)
    await keyring.unlock()
    return _Base(
        settings=settings,
        clock=clock,
        database=database,
        authority=PostgresAuthority(database),
        feed=PostgresFeed(database),
        registry=PostgresWatcherRegistry(database),
        keyring=keyring,
        verify=VerifyRows(keyring),
        capabilities=CatalogueCapabilities(load_catalogue()),
        alarms=MetricAlarms(metrics),
    )


def _hub(base: _Base) -> WatchHub:
    revocation = base.settings.revocation
    limits = WatchLimits(
        partition_bound=revocation.partition_bound,
        poll=revocation.poll,
        queue_max=revocation.watch_queue_max,
        watchers_max=revocation.watchers_max,
    )
    return WatchHub(feed=base.feed, registry=base.registry, alarms=base.alarms, limits=limits)


def _housekeeping(base: _Base) -> Housekeeping:
    return Housekeeping(
        keyring=base.keyring,
        store=base.authority,
        clock=base.clock,
        interval=base.settings.housekeeping_interval,
        # An id can be repeated until it is too old by its own time, which may lie ahead of the arrival.
        requests_kept=REQUEST_ID_AGE_MAX + 2 * REQUEST_ID_AHEAD_MAX,
    )


def _coalescer(base: _Base) -> Coalescer[LeaseCall, list[LeaseOutcome]]:
    leases = base.settings.leases
    acquire = AcquireLeases(
        log=base.authority,
        keyring=base.keyring,
        verify=base.verify,
        capabilities=base.capabilities,
        corruption=ReportCorruption(base.authority, alarms=base.alarms, clock=base.clock, reporter=SERVICE),
        alarms=base.alarms,
        bound=DistinctKeyBound(leases.distinct_keys_per_minute_max),
        clock=base.clock,
        life=leases.life,
    )
    return Coalescer(
        acquire,
        limits=CoalescerLimits(
            batch_max=leases.calls_per_batch_max,
            queue_max=leases.calls_queued_max,
            in_flight_max=leases.batches_in_flight_max,
            linger_max=leases.linger_max,
        ),
        clock=base.clock,
        on_unclaimed=_wipe,
    )


def _counter(metrics: Metrics) -> Callable[[list[LeaseOutcome]], None]:
    items = metrics.counters("lease_items_total", "Items of AcquireLeases, by what became of them.", labels=("result",))

    def count(outcomes: list[LeaseOutcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, GrantedLease):
                items.at("GRANTED").inc()
            elif isinstance(outcome, NoLease):
                items.at(outcome.reason.cause.name).inc()
            else:
                items.at(ERRORS.reason(outcome)).inc()

    return count


def _wipe(_call: LeaseCall, outcome: list[LeaseOutcome] | Exception) -> None:
    """Wipe the secrets of leases whose caller has gone."""
    if isinstance(outcome, list):
        for each in outcome:
            if isinstance(each, GrantedLease):
                each.secret.wipe()


def _key_usecases(base: _Base, keys: ProviderKeys) -> KeyUseCases:
    agents = AgentBindings(base.authority, base.verify)
    check_base_url = CheckBaseUrl(base.capabilities, base.settings.allowed_private_hosts)
    open_submission = OpenSubmission(base.keyring, base.capabilities)
    await_watchers = AwaitWatchers(base.registry, clock=base.clock, poll=base.settings.revocation.acknowledgement_poll)
    return KeyUseCases(
        create=CreateProviderKey(
            prepare=PrepareKey(
                open_submission=open_submission, check_base_url=check_base_url, capabilities=base.capabilities
            ),
            keys=keys,
            store=base.authority,
            agents=agents,
            clock=base.clock,
            keys_per_account_max=base.settings.keys.per_account_max,
        ),
        get=GetProviderKey(keys),
        list=ListProviderKeys(store=base.authority, agents=agents, verify=base.verify),
        update=UpdateProviderKey(keys=keys, capabilities=base.capabilities, clock=base.clock),
        replace_secret=ReplaceSecret(
            keys=keys, open_submission=open_submission, check_base_url=check_base_url, clock=base.clock
        ),
        revoke=RevokeProviderKey(keys=keys, await_watchers=await_watchers, clock=base.clock),
        bind_agent=BindAgent(
            store=base.authority,
            agents=agents,
            verify=base.verify,
            write=WriteBinding(base.authority, base.keyring, WindowLimits()),
            keyring=base.keyring,
            clock=base.clock,
        ),
        keyring=base.keyring,
    )


def _lease_usecases(
    base: _Base,
    keys: ProviderKeys,
    metrics: Metrics,
    *,
    hub: WatchHub,
    coalescer: Coalescer[LeaseCall, list[LeaseOutcome]],
) -> LeaseUseCases:
    rules = CoolDowns(
        rate_limited=base.settings.keys.rate_limited_rest, quota_exhausted=base.settings.keys.quota_exhausted_rest
    )
    return LeaseUseCases(
        acquire=coalescer.submit,
        count=_counter(metrics),
        report_outcomes=ReportOutcomes(
            store=base.authority,
            verify=base.verify,
            write=keys.write,
            keyring=base.keyring,
            clock=base.clock,
            rules=rules,
        ),
        report_validation=ReportValidation(store=base.authority, keys=keys, verify=base.verify, clock=base.clock),
        hub=hub,
        keyring=base.keyring,
    )


def _server(
    base: _Base,
    metrics: Metrics,
    *,
    hub: WatchHub,
    coalescer: Coalescer[LeaseCall, list[LeaseOutcome]],
    refusals: asyncio.Queue[Refusal],
) -> GrpcServer:
    keys = ProviderKeys(
        base.authority,
        keyring=base.keyring,
        verify=base.verify,
        write=WriteKey(base.authority, base.keyring, WindowLimits()),
    )
    descriptors = [
        key_service_pb2.DESCRIPTOR.services_by_name["KeyService"],
        lease_service_pb2.DESCRIPTOR.services_by_name["LeaseService"],
    ]
    return GrpcServer(
        base.settings.server,
        policy=AccessPolicy.load(ACCESS_FILE, services=descriptors),
        errors=ERRORS,
        metrics=metrics,
        services=[
            ServedService(
                key_service_pb2_grpc.add_KeyServiceServicer_to_server,
                KeyServicer(_key_usecases(base, keys)),
                descriptors[0].full_name,
            ),
            ServedService(
                lease_service_pb2_grpc.add_LeaseServiceServicer_to_server,
                LeaseServicer(_lease_usecases(base, keys, metrics, hub=hub, coalescer=coalescer)),
                descriptors[1].full_name,
            ),
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


async def _record_refusals(base: _Base, refusals: asyncio.Queue[Refusal]) -> None:
    record = RecordRefusal(base.authority, base.clock)
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
