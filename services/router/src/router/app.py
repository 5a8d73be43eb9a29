"""Wires settings, adapters, use cases and servicers, and runs them until the process is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from byok.keyvault.v1.lease_service_pb2_grpc import LeaseServiceStub
from byok.metering.v1.admission_service_pb2_grpc import AdmissionServiceStub
from byok.router.v1 import operation_service_pb2, provider_service_pb2
from byok.router.v1.operation_service_pb2_grpc import add_OperationServiceServicer_to_server
from byok.router.v1.provider_service_pb2_grpc import add_ProviderServiceServicer_to_server
from catalogue.book import load_catalogue
from router.adapters.answer_cipher import AnswerCipher
from router.adapters.authority import Authority
from router.adapters.authority_watch import AuthorityWatch, WatchLimits
from router.adapters.keyvault_client import KeyVaultClient, KeyVaultLimits
from router.adapters.lease_cache import CacheLimits, LeaseCache
from router.adapters.metering_client import MeteringClient, MeteringLimits
from router.adapters.settlement_journal import SettlementJournal
from router.api.errors import TABLE
from router.api.servicers import OperationServicer, ProviderServicer
from router.domain.guardrails import GuardrailPrompts
from router.domain.prompts import Prompt
from router.domain.selection import RouteSelection
from router.providers.price_book import GenaiPriceBook, PriceOverride
from router.providers.registry import Codecs
from router.resilience.retrying import RetryBudget, RetryingTransport
from router.settings import Settings
from router.transports.direct import TransportLimits, open_direct_transport
from router.usecases.activity import Activity
from router.usecases.check_due_keys import CheckDueKeys
from router.usecases.costs import Costs
from router.usecases.evaluate_guardrail import EvaluateGuardrail
from router.usecases.generate_embeddings import GenerateEmbeddings
from router.usecases.paid_calls import CallLimits
from router.usecases.provider_calls import ProviderCalls
from router.usecases.questions import Vendors
from router.usecases.validate_key import ValidateKey
from servicekit.admin import AdminServer
from servicekit.channels import open_channel
from servicekit.clock import Clock, SystemClock
from servicekit.errors import DomainError
from servicekit.identity import AccessPolicy
from servicekit.ids import new_uuid7
from servicekit.metrics import Metrics
from servicekit.process import announce_ready
from servicekit.server import GrpcServer, ServedService
from servicekit.settings import SettingsError
from servicekit.tracing import make_tracer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from router.domain.answers import ValidationAnswer
    from router.domain.leases import DueKey
    from router.domain.receipts import Receipt
    from router.ports import ProviderTransport
    from servicekit.channels import RotatingChannel
    from servicekit.refusals import Refusal
    from servicekit.settings import PeerSettings

SERVICE: Final = "router"
ACCESS_FILE: Final = Path(__file__).with_name("access.toml")

_log = structlog.get_logger("router.app")

_OPERATION_SERVICE: Final = "byok.router.v1.OperationService"
_PROVIDER_SERVICE: Final = "byok.router.v1.ProviderService"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """What everything else stands on."""

    settings: Settings
    metrics: Metrics
    clock: Clock
    holder: str
    activity: Activity


@dataclass(frozen=True, slots=True, kw_only=True)
class _Custody:
    """KeyVault, as this process sees it."""

    authority: Authority
    client: KeyVaultClient
    watch: AuthorityWatch
    cache: LeaseCache


@dataclass(frozen=True, slots=True, kw_only=True)
class _UseCases:
    """What is done for callers."""

    evaluate_guardrail: EvaluateGuardrail
    generate_embeddings: GenerateEmbeddings
    validate_key: ValidateKey


def _announce(grpc_port: int, admin_port: int) -> None:
    announce_ready(grpc_port=grpc_port, admin_port=admin_port)


async def serve(
    settings: Settings, stop: asyncio.Event, metrics: Metrics, *, announce: Callable[[int, int], None] = _announce
) -> None:
    """Serve until `stop` is set, then drain; `announce` gets the gRPC and admin ports when calls are taken."""
    clock = SystemClock()
    base = _Base(
        settings=settings,
        metrics=metrics,
        clock=clock,
        # One incarnation of this process: holds of an earlier one are not ours.
        holder=new_uuid7(clock.now()),
        activity=Activity(),
    )
    async with contextlib.AsyncExitStack() as stack:
        custody = await _open_custody(base, stack)
        journal = SettlementJournal(settings.metering.journal_max)
        admission = await _open_admission(base, journal, stack)
        transport = await _open_transport(base, stack)
        usecases = _usecases(base, custody, admission, transport)
        server = _server(base, usecases, admission)
        admin = AdminServer(
            settings.admin,
            readiness=lambda: {"serving": server.is_serving, "keyvault_watch": custody.authority.is_in_contact},
            registry=metrics.registry,
        )
        _describe(base, custody, journal)
        await stack.enter_async_context(admin)
        await stack.enter_async_context(_running(custody.watch.run()))
        await stack.enter_async_context(_running(custody.cache.keep_clean()))
        await stack.enter_async_context(_running(admission.keep_settling()))
        if settings.due_keys.keys_max:
            await stack.enter_async_context(_running(_check_due_keys(base, custody, usecases)))
        await stack.enter_async_context(server)
        announce(server.port, admin.port)
        await stop.wait()


async def _open_custody(base: _Base, stack: contextlib.AsyncExitStack) -> _Custody:
    settings = base.settings.keyvault
    stub = LeaseServiceStub(await _channel(base, settings, stack))
    authority = Authority(base.clock)
    client = KeyVaultClient(
        stub,
        holder=base.holder,
        clock=base.clock,
        limits=KeyVaultLimits(
            lease_timeout=settings.lease_timeout,
            report_timeout=settings.report_timeout,
            lease_batch_max=settings.lease_batch_max,
            outcome_batch_max=settings.outcome_batch_max,
            outcome_linger=settings.outcome_linger,
            queue_max=settings.queue_max,
        ),
    )
    stack.push_async_callback(client.aclose)
    watch = AuthorityWatch(
        lambda: _watch_connection(base, settings),
        authority,
        holder=base.holder,
        clock=base.clock,
        limits=WatchLimits(
            ping_interval=settings.ping_interval,
            silence_max=settings.silence_max,
            reconnect_delay=settings.reconnect_delay,
        ),
    )
    looked_up = base.metrics.counters("leases_total", "Leases asked for, by where they came from.", labels=("result",))
    cache = LeaseCache(
        client,
        authority,
        limits=CacheLimits(
            entries_max=settings.cached_max,
            contact_wait=settings.contact_wait,
            sweep_interval=settings.sweep_interval,
            late_leases_max=settings.late_leases_max,
        ),
        clock=base.clock,
        count=lambda result: looked_up.at(result).inc(),
    )
    return _Custody(authority=authority, client=client, watch=watch, cache=cache)


async def _open_admission(base: _Base, journal: SettlementJournal, stack: contextlib.AsyncExitStack) -> MeteringClient:
    settings = base.settings.metering
    admission = MeteringClient(
        AdmissionServiceStub(await _channel(base, settings, stack)),
        journal=journal,
        holder=base.holder,
        clock=base.clock,
        active=base.activity.count,
        limits=MeteringLimits(
            call_timeout=settings.call_timeout,
            settle_wait=settings.settle_wait,
            reserve_tries=settings.reserve_tries,
            resend_interval=settings.resend_interval,
            batch_max=settings.batch_max,
            queue_max=settings.queue_max,
            in_flight_max=settings.batches_in_flight_max,
            linger_max=settings.linger_max,
        ),
    )
    stack.push_async_callback(admission.aclose)
    return admission


async def _open_transport(base: _Base, stack: contextlib.AsyncExitStack) -> ProviderTransport:
    egress, retry = base.settings.egress, base.settings.retry
    direct = await stack.enter_async_context(
        open_direct_transport(
            allowed_hosts=egress.allowed_hosts,
            extra_ca_file=egress.extra_ca_file,
            clock=base.clock,
            limits=TransportLimits(
                connect_timeout=egress.connect_timeout,
                answer_bytes_max=egress.answer_bytes_max,
                connections_max=egress.connections_max,
                connections_per_host_max=egress.connections_per_host_max,
                idle_timeout=egress.idle_timeout,
            ),
        )
    )
    budget = RetryBudget(
        tries_max=retry.tries_max, delay_min=retry.delay_min, delay_max=retry.delay_max, jitter=retry.jitter
    )
    return RetryingTransport(direct, budget=budget, clock=base.clock, draw=random.SystemRandom())


def _server(base: _Base, usecases: _UseCases, admission: MeteringClient) -> GrpcServer:
    settings = base.settings
    operations, providers = _servicers(base, usecases)
    policy = AccessPolicy.load(
        ACCESS_FILE,
        services=[
            operation_service_pb2.DESCRIPTOR.services_by_name["OperationService"],
            provider_service_pb2.DESCRIPTOR.services_by_name["ProviderService"],
        ],
    )
    return GrpcServer(
        settings.server,
        policy=policy,
        errors=TABLE,
        metrics=base.metrics,
        services=[
            ServedService(add_OperationServiceServicer_to_server, operations, _OPERATION_SERVICE),
            ServedService(add_ProviderServiceServicer_to_server, providers, _PROVIDER_SERVICE),
        ],
        tracer=make_tracer(SERVICE, settings.telemetry),
        on_refusal=_tell_refusal,
        drain_hooks=[admission.drain],
        message_bytes_max={f"{_OPERATION_SERVICE}/GenerateEmbeddings": settings.embedding_request_bytes_max},
    )


def _tell_refusal(refusal: Refusal) -> None:
    # The Router keeps no audit of its own; whoever collects its log does.
    _log.warning("caller.refused", caller=refusal.caller, method=refusal.method, count=refusal.count)


def _usecases(base: _Base, custody: _Custody, admission: MeteringClient, transport: ProviderTransport) -> _UseCases:
    settings, clock, activity = base.settings, base.clock, base.activity
    catalogue = load_catalogue()
    prices = GenaiPriceBook([PriceOverride(**dict(row)) for row in settings.prices])
    vendors = Vendors(
        codecs=Codecs(), catalogue=catalogue, costs=Costs(prices=prices, catalogue=catalogue, clock=clock)
    )
    routes = RouteSelection(catalogue)
    seal = _answer_cipher(settings.answer_key_file)
    prompts = _prompts()
    calls = ProviderCalls(
        keys=custody.cache,
        admission=admission,
        transport=transport,
        routes=routes,
        clock=clock,
        limits=_call_limits(settings),
        activity=activity,
    )
    return _UseCases(
        evaluate_guardrail=EvaluateGuardrail(
            calls=calls, vendors=vendors, prompts=prompts, seal=seal, clock=clock, activity=activity
        ),
        generate_embeddings=GenerateEmbeddings(calls=calls, vendors=vendors, seal=seal, clock=clock, activity=activity),
        validate_key=ValidateKey(
            keys=custody.cache,
            calls=calls,
            routes=routes,
            vendors=vendors,
            prompts=prompts,
            seal=seal,
            clock=clock,
            activity=activity,
        ),
    )


def _servicers(base: _Base, usecases: _UseCases) -> tuple[OperationServicer, ProviderServicer]:
    operations = OperationServicer(
        evaluate_guardrail=usecases.evaluate_guardrail,
        generate_embeddings=usecases.generate_embeddings,
        clock=base.clock,
        count=_counter(base.metrics),
    )
    return operations, ProviderServicer(validate_key=usecases.validate_key, clock=base.clock)


async def _check_due_keys(base: _Base, custody: _Custody, usecases: _UseCases) -> None:
    settings = base.settings.due_keys
    check = CheckDueKeys(
        keys=custody.client,
        validate_key=usecases.validate_key,
        clock=base.clock,
        keys_max=settings.keys_max,
        timeout=settings.timeout,
        tell=_tell_due_key,
    )
    pause = settings.first_pause
    while True:
        await base.clock.sleep(pause)
        try:
            pause = await check()
        except DomainError as error:
            _log.warning("due_keys.not_claimed", error=type(error).__name__)
            pause = settings.pause_after_refusal


def _tell_due_key(due: DueKey, outcome: ValidationAnswer | DomainError) -> None:
    key_id = due.lease.key_id
    if isinstance(outcome, DomainError):
        _log.warning("due_key.not_tested", provider_key_id=key_id, error=type(outcome).__name__)
    else:
        _log.info("due_key.tested", provider_key_id=key_id, verdict=outcome.verdict, is_free=due.is_free)


def _call_limits(settings: Settings) -> CallLimits:
    return CallLimits(
        attempt_timeout=settings.egress.attempt_timeout,
        attempts_max=settings.retry.attempts_max,
        candidates_max=settings.retry.candidates_max,
        lease_losses_max=settings.retry.lease_losses_max,
        attempt_pause=settings.retry.attempt_pause,
        settle_margin=settings.retry.settle_margin,
        hold_margin=settings.hold.margin,
        hold_ttl_max=settings.hold.ttl_max,
    )


@contextlib.asynccontextmanager
async def _watch_connection(base: _Base, peer: PeerSettings) -> AsyncIterator[LeaseServiceStub]:
    async with contextlib.AsyncExitStack() as stack:
        yield LeaseServiceStub(await _channel(base, peer, stack))


async def _channel(base: _Base, peer: PeerSettings, stack: contextlib.AsyncExitStack) -> RotatingChannel:
    tls = (peer.tls or base.settings.server.tls).files()
    channel = open_channel(peer.target, tls, server_name=peer.server_name, clock=base.clock)
    return await stack.enter_async_context(channel)


def _answer_cipher(file: Path) -> AnswerCipher:
    try:
        return AnswerCipher(bytes.fromhex(file.read_text(encoding="ascii").strip()))
    except (OSError, ValueError):
        # Neither the file's text nor what is wrong with it: both may tell of the key.
        message = "answer_key_file must name a readable file of 64 hexadecimal digits"
        raise SettingsError(message) from None


def _prompts() -> GuardrailPrompts:
    folder = resources.files("router") / "prompts"

    def read(version: str) -> Prompt:
        return Prompt(version, (folder / f"{version}.md").read_text(encoding="utf-8"))

    return GuardrailPrompts(judge=read("guardrail_v1"), repair=read("guardrail_repair_v1"))


def _counter(metrics: Metrics) -> Callable[[str, Receipt], None]:
    answered = metrics.counters("operations_total", "Operations answered.", labels=("operation", "payer", "settlement"))
    provider_seconds = metrics.histograms(
        "provider_seconds", "Time spent waiting for a provider, per operation.", labels=("provider",)
    )

    def count(operation: str, receipt: Receipt) -> None:
        answered.at(operation, receipt.payer.value, receipt.settlement.value).inc()
        provider_seconds.at(receipt.provider).observe(receipt.provider_latency.total_seconds())

    return count


def _describe(base: _Base, custody: _Custody, journal: SettlementJournal) -> None:
    metrics = base.metrics
    metrics.gauge("settlements_undurable", "Settlements and releases that are not durable yet.", lambda: journal.size)
    metrics.gauge("holds_open", "Holds of calls under way.", lambda: journal.open_holds)
    metrics.gauge("leases_cached", 'Leases and "no key" answers kept.', lambda: custody.cache.entries)
    metrics.gauge(
        "authority_contact", "1 while a revocation would be heard of.", lambda: int(custody.authority.is_in_contact)
    )
    metrics.gauge("operations_active", "Operations under way.", lambda: base.activity.operations)


@contextlib.asynccontextmanager
async def _running(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run `work` beside the block; when it fails, the block is cancelled and the failure told."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        yield
        task.cancel()
