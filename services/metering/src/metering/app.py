"""Wiring: settings to adapters to use cases to servicers and workers, in one exit stack.

Leaving the stack undoes it in reverse: the server drains, then the workers stop (the flusher flushes once more, the
licence is given back), then connections close.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from importlib.resources import files
from typing import Any, Final

import redis.asyncio
import structlog

from byok.metering.v1 import (
    account_service_pb2,
    account_service_pb2_grpc,
    admission_service_pb2,
    admission_service_pb2_grpc,
    limit_service_pb2,
    limit_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from metering.adapters.custody_log import KeyVaultCustodyLog
from metering.adapters.keyvault_client import KeyVaultAgentBinder
from metering.adapters.postgres.connection import Database, open_database
from metering.adapters.postgres.custody import PostgresCustodyWitnesses
from metering.adapters.postgres.directory import PostgresDirectory, PostgresRequests
from metering.adapters.postgres.ledger import PostgresLedger
from metering.adapters.postgres.licences import PostgresLicences
from metering.adapters.postgres.limits import PostgresLimits
from metering.adapters.postgres.migrations import migrate
from metering.adapters.redis.admission import RedisAdmissionStore
from metering.adapters.redis.connection import ConnectionTimes, ScriptConnection
from metering.adapters.redis.control import RedisControl
from metering.adapters.redis.counters import RedisCounterStore
from metering.adapters.redis.outbox import RedisHoldExpiry, RedisOutbox
from metering.adapters.redis.scripts import ScriptRunner
from metering.api.account_servicer import AccountServicer, AccountUseCases
from metering.api.admission_servicer import AdmissionServicer, AdmissionUseCases
from metering.api.errors import TABLE
from metering.api.limit_servicer import LimitServicer, LimitUseCases
from metering.api.replays import Replays
from metering.api.usage_servicer import UsageServicer, UsageUseCases
from metering.domain.custody import CustodyState
from metering.ports import AgentBinder, CustodyLog
from metering.settings import Durability, Settings
from metering.usecases.accept_custody_restore import AcceptCustodyRestore, GetCustodyWitness
from metering.usecases.admission_gate import AdmissionGate
from metering.usecases.agent_directory import AgentDirectory, Remembering
from metering.usecases.change_limits import ApplyLimits, ListLimits, RemoveLimit, SetLimit
from metering.usecases.extend_batch import ExtendBatch
from metering.usecases.final_outcomes import FinalOutcomes
from metering.usecases.list_watermarks import ListWatermarks
from metering.usecases.load_accounts import LoadAccounts
from metering.usecases.lookup_operation import LookupOperation
from metering.usecases.query_usage import GetUsageSummary, ListLedgerEntries
from metering.usecases.read_accounts import GetAccount, GetAgent, ListAgents
from metering.usecases.register_agent import RegisterAgent
from metering.usecases.release_batch import ReleaseBatch
from metering.usecases.reserve_batch import ReserveBatch
from metering.usecases.roll_calendars import RollCalendars
from metering.usecases.settle_batch import SettleBatch
from metering.usecases.witness_custody import CustodyPace, WitnessCustody
from metering.workers.apply_limits import PendingLimits
from metering.workers.expire import Expirer, ExpiryPace
from metering.workers.flush import Flusher, FlushPace
from metering.workers.maintain import Maintenance
from metering.workers.rebuild import LicenceKeeper, LicencePace
from metering.workers.reconcile import Reconciler
from metering.workers.witness import Witness, WitnessPace
from servicekit.admin import AdminServer
from servicekit.channels import RotatingChannel, open_channel
from servicekit.clock import Clock, SystemClock
from servicekit.identity import AccessPolicy
from servicekit.ids import new_uuid7
from servicekit.metrics import Metrics
from servicekit.process import announce_ready
from servicekit.server import GrpcServer, ServedService

_log = structlog.get_logger("metering.app")

_PENDING_LIMITS_EVERY: Final = timedelta(seconds=2)
_WRITERS_STOP_WITHIN: Final = timedelta(seconds=10)
_OTHERS_STOP_WITHIN: Final = timedelta(milliseconds=100)
_OPEN_WITHIN: Final = timedelta(seconds=5)
_OPEN_LOOK: Final = timedelta(milliseconds=10)
_KEYVAULT_DEADLINE_MAX: Final = timedelta(seconds=5)
# The witness must be back before the first leases of a KeyVault that comes back are spent.
_WITNESS_OPTIONS: Final = (("grpc.max_reconnect_backoff_ms", 200),)
# A batch of 256 settlements, each with an answer of 16 KiB.
_SETTLE_BYTES_MAX: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Every adapter of one replica."""

    admission: RedisAdmissionStore
    counters: RedisCounterStore
    outbox: RedisOutbox
    expiry: RedisHoldExpiry
    control: RedisControl
    directory: PostgresDirectory
    limits: PostgresLimits
    requests: PostgresRequests
    licences: PostgresLicences
    ledger: PostgresLedger
    witnesses: PostgresCustodyWitnesses
    custody_log: CustodyLog
    binder: AgentBinder


class Replica:
    """One replica's use cases and workers, wired."""

    def __init__(self, settings: Settings, stores: Stores, clock: Clock) -> None:
        """Wire."""
        self.settings = settings
        self.stores = stores
        self.clock = clock
        self.gate = AdmissionGate(clock)
        self.agents = AgentDirectory(
            stores.directory,
            clock=clock,
            remembering=Remembering(entries_max=settings.directory.entries_max, fresh=settings.directory.fresh),
        )
        self.load_account = LoadAccounts(
            counters=stores.counters,
            ledger=stores.ledger,
            directory=stores.directory,
            limits=stores.limits,
            clock=clock,
        )
        self.roll_calendar = RollCalendars(counters=stores.counters, directory=stores.directory)
        self.apply_limits = ApplyLimits(gate=self.gate, load_account=self.load_account)
        self.outcomes = FinalOutcomes(ledger=stores.ledger, clock=clock)
        # One name for life: a licence is one incarnation's.
        self.name = new_uuid7(clock.now())
        self.flusher = self._new_flusher()
        self.keeper = self._new_keeper()
        self.expirer = Expirer(
            expiry=stores.expiry,
            ledger=stores.ledger,
            gate=self.gate,
            clock=clock,
            partitions=lambda: self.flusher.partitions,
            pace=ExpiryPace(look=settings.expiry.interval, prune=settings.expiry.prune_interval),
        )
        self.reconciler = Reconciler(
            counters=stores.counters,
            ledger=stores.ledger,
            limits=stores.limits,
            gate=self.gate,
            clock=clock,
            touched=self.flusher.touched,
        )
        self.pending = PendingLimits(
            limits=stores.limits, apply_limits=self.apply_limits, clock=clock, pace=_PENDING_LIMITS_EVERY
        )
        self.maintenance = Maintenance(ledger=stores.ledger, requests=stores.requests, clock=clock)
        self.custody = self._new_custody()
        self.witness = self._new_witness()

    def _new_custody(self) -> WitnessCustody:
        custody = self.settings.custody
        return WitnessCustody(
            witnesses=self.stores.witnesses,
            log=self.stores.custody_log,
            gate=self.gate,
            clock=self.clock,
            pinned_keys=custody.verifier_keys,
            pace=CustodyPace(read=custody.read_interval),
        )

    def _new_witness(self) -> Witness:
        custody = self.settings.custody
        return Witness(
            custody=self.custody,
            clock=self.clock,
            pace=WitnessPace(look=custody.look_interval, read=custody.read_interval, alarm=custody.alarm_after),
        )

    def _new_flusher(self) -> Flusher:
        flush = self.settings.flush
        return Flusher(
            replica=self.name,
            outbox=self.stores.outbox,
            ledger=self.stores.ledger,
            licences=self.stores.licences,
            gate=self.gate,
            clock=self.clock,
            pace=FlushPace(idle=flush.idle_interval, records_max=flush.records_max, backlog_max=flush.backlog_max),
        )

    def _new_keeper(self) -> LicenceKeeper:
        licence = self.settings.licence
        return LicenceKeeper(
            replica=self.name,
            licences=self.stores.licences,
            control=self.stores.control,
            ledger=self.stores.ledger,
            flusher=self.flusher,
            gate=self.gate,
            clock=self.clock,
            pace=LicencePace(life=licence.life, renew=licence.renew, memory_max=self.settings.redis.memory_max),
        )

    def admission(self) -> AdmissionUseCases:
        """Return what AdmissionService does."""
        stores = self.stores
        return AdmissionUseCases(
            reserve=ReserveBatch(
                store=stores.admission,
                ledger=stores.ledger,
                gate=self.gate,
                agents=self.agents,
                load_account=self.load_account,
                roll_calendar=self.roll_calendar,
                outcomes=self.outcomes,
                clock=self.clock,
            ),
            settle=SettleBatch(store=stores.admission, ledger=stores.ledger, gate=self.gate, agents=self.agents),
            release=ReleaseBatch(store=stores.admission, gate=self.gate),
            extend=ExtendBatch(store=stores.admission, gate=self.gate),
            lookup=LookupOperation(
                store=stores.admission,
                ledger=stores.ledger,
                gate=self.gate,
                agents=self.agents,
                outcomes=self.outcomes,
            ),
            watermarks=ListWatermarks(stores.ledger),
        )

    def accounts(self) -> AccountUseCases:
        """Return what AccountService does."""
        directory = self.stores.directory
        return AccountUseCases(
            register=RegisterAgent(
                directory=directory,
                binder=self.stores.binder,
                clock=self.clock,
                default_cost_cap_nano_usd=self.settings.defaults.daily_cost_cap_nano_usd,
            ),
            get_agent=GetAgent(directory),
            list_agents=ListAgents(directory),
            get_account=GetAccount(directory),
            get_custody_witness=GetCustodyWitness(self.custody),
            accept_custody_restore=AcceptCustodyRestore(
                witness=self.custody,
                witnesses=self.stores.witnesses,
                log=self.stores.custody_log,
                pinned_keys=self.settings.custody.verifier_keys,
            ),
        )

    def limits(self) -> LimitUseCases:
        """Return what LimitService does."""
        stores = self.stores
        return LimitUseCases(
            set_limit=SetLimit(limits=stores.limits, directory=stores.directory, apply_limits=self.apply_limits),
            remove_limit=RemoveLimit(limits=stores.limits, apply_limits=self.apply_limits),
            list_limits=ListLimits(
                limits=stores.limits,
                directory=stores.directory,
                counters=stores.counters,
                gate=self.gate,
                load_account=self.load_account,
                roll_calendar=self.roll_calendar,
            ),
        )

    def usage(self) -> UsageUseCases:
        """Return what UsageService does."""
        stores = self.stores
        return UsageUseCases(
            summary=GetUsageSummary(
                directory=stores.directory, ledger=stores.ledger, outbox=stores.outbox, clock=self.clock
            ),
            entries=ListLedgerEntries(directory=stores.directory, ledger=stores.ledger),
        )

    def services(self) -> list[ServedService]:
        """Return what is served."""
        replays = Replays(self.stores.requests, self.clock)
        return [
            ServedService(
                admission_service_pb2_grpc.add_AdmissionServiceServicer_to_server,
                AdmissionServicer(self.admission(), self.clock),
                "byok.metering.v1.AdmissionService",
            ),
            ServedService(
                account_service_pb2_grpc.add_AccountServiceServicer_to_server,
                AccountServicer(self.accounts(), replays),
                "byok.metering.v1.AccountService",
            ),
            ServedService(
                limit_service_pb2_grpc.add_LimitServiceServicer_to_server,
                LimitServicer(self.limits(), replays),
                "byok.metering.v1.LimitService",
            ),
            ServedService(
                usage_service_pb2_grpc.add_UsageServiceServicer_to_server,
                UsageServicer(self.usage(), self.clock),
                "byok.metering.v1.UsageService",
            ),
        ]

    def readiness(self) -> dict[str, bool]:
        """Return whether each named thing that the service needs is there."""
        return {"licence": self.gate.is_open}

    def describe(self, metrics: Metrics) -> None:
        """Show the replica's gauges."""
        metrics.gauge("admission_open", "Whether reserves are let in.", lambda: float(self.gate.is_admitting))
        metrics.gauge("outbox_backlog_records", "Records not in the ledger yet.", lambda: self.flusher.backlog)
        metrics.gauge("ledger_rows_written", "Entries written by this replica.", lambda: self.flusher.rows_written)
        metrics.gauge("partitions_owned", "Partitions flushed by this replica.", lambda: len(self.flusher.partitions))
        metrics.gauge("accounts_compared", "Accounts compared with the ledger.", lambda: self.reconciler.compared)
        metrics.gauge("limits_drifted", "Counters that differed from the ledger.", lambda: self.reconciler.drifted)
        metrics.gauge("rebuilds_done", "Rebuilds done by this replica.", lambda: self.keeper.rebuilds)
        metrics.gauge("rebuild_seconds", "How long the last rebuild took.", lambda: self.keeper.rebuild_seconds)
        self._describe_custody(metrics)

    def _describe_custody(self, metrics: Metrics) -> None:
        custody = self.custody
        metrics.gauge(
            "custody_rolled_back",
            "Whether KeyVault's log contradicts what was witnessed.",
            lambda: float(custody.record.state is CustodyState.ROLLED_BACK),
        )
        metrics.gauge("custody_witnessed_entries", "Entries witnessed.", lambda: custody.record.size)
        metrics.gauge("custody_witness_age_seconds", "Since the log was last seen.", lambda: custody.age_seconds)


async def serve(settings: Settings, stop: asyncio.Event, metrics: Metrics) -> None:
    """Serve until asked to stop."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        if settings.migrate_on_start:
            await migrate(settings.postgres.dsn.get_secret_value())
        replica = Replica(settings, await open_stores(settings, stack), clock)
        replica.describe(metrics)
        await replica.stores.control.ensure_keeps_everything()
        await _compare_durability(replica)
        await replica.maintenance.round()
        # Before anything is admitted: a roll-back that was found before this replica started still stands.
        await replica.custody.look()
        await _start_workers(replica, stack)
        await _wait_until_open(replica)
        policy = AccessPolicy.load(
            (files("metering") / "access.toml").read_text(encoding="utf-8"), services=service_descriptors()
        )
        server = await stack.enter_async_context(
            GrpcServer(
                settings.server,
                policy=policy,
                errors=TABLE,
                metrics=metrics,
                services=replica.services(),
                message_bytes_max={"byok.metering.v1.AdmissionService/SettleBatch": _SETTLE_BYTES_MAX},
            )
        )
        admin = await stack.enter_async_context(
            AdminServer(settings.admin, readiness=replica.readiness, registry=metrics.registry)
        )
        announce_ready(grpc_port=server.port, admin_port=admin.port)
        await stop.wait()


async def _compare_durability(replica: Replica) -> None:
    """Say so when Redis shows less durability than the operator declared: the loss bound would be another."""
    declared = replica.settings.redis.durability
    if declared is Durability.AOF and not await replica.stores.control.has_append_only_file():
        _log.warning("store.less_durable_than_declared", declared=declared.value)


async def _wait_until_open(replica: Replica) -> None:
    """Give the licence a moment, so that whoever waits for the ready line can reserve at once.

    After a hard stop of everything the licences of the dead are waited out, which takes longer; what needs no licence
    is served meanwhile.
    """
    end = replica.clock.monotonic() + _OPEN_WITHIN.total_seconds()
    while not replica.gate.is_open and replica.clock.monotonic() < end:
        await replica.clock.sleep(_OPEN_LOOK)


def service_descriptors() -> list[Any]:
    """Return the descriptors of the services that Metering serves."""
    return [
        admission_service_pb2.DESCRIPTOR.services_by_name["AdmissionService"],
        account_service_pb2.DESCRIPTOR.services_by_name["AccountService"],
        limit_service_pb2.DESCRIPTOR.services_by_name["LimitService"],
        usage_service_pb2.DESCRIPTOR.services_by_name["UsageService"],
    ]


async def open_stores(settings: Settings, stack: AsyncExitStack) -> Stores:
    """Open every connection of a replica, for as long as the stack lasts."""
    postgres, store = settings.postgres, settings.redis
    database: Database = await stack.enter_async_context(
        open_database(
            postgres.dsn.get_secret_value(),
            pool_max=postgres.pool_max,
            command_timeout=postgres.command_timeout,
            acquire_timeout=postgres.acquire_timeout,
        )
    )
    times = ConnectionTimes(connect=store.connect_timeout, reply=store.reply_timeout)
    connection = ScriptConnection(store.url.get_secret_value(), times=times)
    stack.push_async_callback(connection.aclose)
    client = redis.asyncio.from_url(
        store.url.get_secret_value(),
        socket_timeout=store.reply_timeout.total_seconds(),
        socket_connect_timeout=store.connect_timeout.total_seconds(),
    )
    stack.push_async_callback(client.aclose)
    channel = await _open_keyvault(settings, stack)
    witness_channel = await _open_keyvault(settings, stack, options=_WITNESS_OPTIONS)
    runner = ScriptRunner(connection)
    return Stores(
        admission=RedisAdmissionStore(runner),
        counters=RedisCounterStore(runner),
        outbox=RedisOutbox(client),
        expiry=RedisHoldExpiry(client, runner),
        control=RedisControl(connection, client),
        directory=PostgresDirectory(database, default_plan=settings.defaults.plan),
        limits=PostgresLimits(database),
        requests=PostgresRequests(database),
        licences=PostgresLicences(database),
        ledger=PostgresLedger(database),
        witnesses=PostgresCustodyWitnesses(database),
        custody_log=KeyVaultCustodyLog(witness_channel, deadline_max=settings.custody.call_timeout),
        binder=KeyVaultAgentBinder(channel, deadline_max=_KEYVAULT_DEADLINE_MAX),
    )


async def _open_keyvault(
    settings: Settings, stack: AsyncExitStack, *, options: Sequence[tuple[str, int]] = ()
) -> RotatingChannel:
    peer = settings.keyvault
    tls = (peer.tls or settings.server.tls).files()
    return await stack.enter_async_context(
        open_channel(peer.target, tls, server_name=peer.server_name, options=options)
    )


async def _start_workers(replica: Replica, stack: AsyncExitStack) -> None:
    """Start the workers; leaving the stack stops them in the reverse order."""
    workers: list[tuple[str, Callable[[asyncio.Event], Coroutine[Any, Any, None]]]] = [
        ("licence", replica.keeper.run),
        ("flush", replica.flusher.run),
        ("expire", replica.expirer.run),
        ("reconcile", replica.reconciler.run),
        ("apply_limits", replica.pending.run),
        ("maintain", replica.maintenance.run),
        ("custody_watch", replica.witness.watch),
        ("custody_witness", replica.witness.run),
    ]
    for name, run in workers:
        stop = asyncio.Event()
        task = asyncio.create_task(_keep_running(name, run, stop), name=name)
        # Only what must still write gets time to end; the others may be cut off anywhere.
        patience = _WRITERS_STOP_WITHIN if name in {"licence", "flush"} else _OTHERS_STOP_WITHIN
        stack.push_async_callback(_stop_worker, task, stop, patience)


async def _keep_running(name: str, run: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event) -> None:
    """Run a worker again if it fails in a way that it does not know."""
    while not stop.is_set():
        try:
            await run(stop)
        except Exception:  # noqa: BLE001 (a worker that died would be money that stops flowing)
            _log.exception("worker.failed", worker=name)
            await asyncio.sleep(1)


async def _stop_worker(task: "asyncio.Task[None]", stop: asyncio.Event, patience: timedelta) -> None:
    stop.set()
    await asyncio.wait([task], timeout=patience.total_seconds())
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
