"""A replica of Metering on real Postgres and Redis, in this process: its use cases, and its workers one step at a time.

Importable by tests as `services.metering.tests.rig`.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import asyncpg
import msgspec
import redis.asyncio
from pydantic import SecretStr
from typing_extensions import override

from metering.adapters.postgres.connection import open_database
from metering.adapters.postgres.custody import PostgresCustodyWitnesses
from metering.adapters.postgres.directory import PostgresDirectory, PostgresRequests
from metering.adapters.postgres.ledger import PostgresLedger
from metering.adapters.postgres.licences import PostgresLicences
from metering.adapters.postgres.limits import PostgresLimits
from metering.adapters.postgres.migrations import migrate
from metering.adapters.redis.admission import RedisAdmissionStore
from metering.adapters.redis.connection import ScriptConnection
from metering.adapters.redis.control import RedisControl
from metering.adapters.redis.counters import RedisCounterStore
from metering.adapters.redis.outbox import RedisHoldExpiry, RedisOutbox
from metering.adapters.redis.scripts import ScriptRunner
from metering.app import Replica, Stores
from metering.domain.accounts import AccountKey, account_key
from metering.domain.enums import AccountKind, Operation, Payer, PlatformCause, ScopeKind, Unit, Window
from metering.domain.ledger import reservation_id
from metering.domain.limits import OWN_PAYERS, Limit, Scope
from metering.domain.principals import Principal
from metering.domain.reservations import Call, Estimate, ReleaseCommand, ReserveCommand, SettleCommand
from metering.ports import AgentBinder
from metering.settings import (
    CustodySettings,
    DefaultsSettings,
    LicenceSettings,
    PostgresSettings,
    RedisSettings,
    Settings,
)
from metering.usecases.register_agent import AgentRegistration
from metering.usecases.reserve_batch import Grant, ReserveRequest, ReserveResult
from metering.usecases.settle_batch import SettleResult
from servicekit.clock import Clock, SystemClock
from servicekit.ids import new_uuid7
from servicekit.settings import PeerSettings, ServerSettings, TlsSettings
from services.metering.tests.calls import facts_of
from services.metering.tests.custody import AuditLog, MemoryCustodyLog

BIG = 2**50
NO_FILE = Path("/nonexistent")


class RecordingBinder(AgentBinder):
    """KeyVault's bindings, in memory."""

    def __init__(self) -> None:
        self.bound: dict[str, tuple[str, AccountKey]] = {}

    @override
    async def bind(self, *, request_id: str, actor: str, agent_id: str, owner_id: str, account: AccountKey) -> int:
        self.bound[agent_id] = (owner_id, account)
        return len(self.bound)


@dataclass
class Rig:
    """One replica, with short words for what tests say often."""

    replica: Replica
    dsn: str
    redis_url: str
    clock: Clock
    holder: str = field(default="")

    def __post_init__(self) -> None:
        """Take the name of a Router."""
        self.holder = self.holder or self.new_id()
        self.admission = self.replica.admission()
        self.accounts = self.replica.accounts()
        self.limits = self.replica.limits()
        self.usage = self.replica.usage()

    def new_id(self) -> str:
        """Return a new request id."""
        return new_uuid7(self.clock.now())

    async def register(self, owner_id: str, agent_id: str, *, organization_id: str = "") -> AccountKey:
        """Register an agent and return its account."""
        agent = await self.accounts.register(
            AgentRegistration(
                request_id=self.new_id(),
                acting_for=Principal(operator_id="root"),
                actor="test",
                agent_id=agent_id,
                owner_id=owner_id,
                organization_id=organization_id,
            )
        )
        return agent.account

    async def limit(
        self,
        account: AccountKey,
        unit: Unit,
        amount: int,
        *,
        window: Window = Window.DAY,
        scope: Scope | None = None,
        operation: Operation | None = None,
        payers: frozenset[Payer] = OWN_PAYERS,
        is_hard: bool = True,
    ) -> Limit:
        """Set a limit, which must be in force at once."""
        limit = Limit(
            account=account,
            scope=scope or Scope(ScopeKind.ACCOUNT),
            operation=operation,
            unit=unit,
            window=window,
            payers=payers,
            amount=amount,
            is_hard=is_hard,
        )
        written, is_applied = await self.limits.set_limit(limit, etag="", acting_for=Principal(operator_id="root"))
        assert is_applied, "Redis did not apply the limit at once"
        return written

    async def reserve_all(self, requests: Sequence[ReserveRequest]) -> list[ReserveResult]:
        """Reserve a batch."""
        return await self.admission.reserve(requests)

    async def reserve(self, request: ReserveRequest) -> ReserveResult:
        """Reserve one."""
        return (await self.admission.reserve([request]))[0]

    async def granted(self, request: ReserveRequest) -> Grant:
        """Reserve one, which must be granted."""
        result = await self.reserve(request)
        assert isinstance(result, Grant), result
        return result

    async def settle(self, command: SettleCommand) -> SettleResult:
        """Settle one."""
        return (await self.admission.settle([command]))[0]

    async def flush(self) -> int:
        """Flush until nothing is left; return how many records went."""
        total = 0
        while (written := await self.replica.flusher.round()) > 0:
            total += written
        return total

    async def counters(self, account: AccountKey) -> dict[str, tuple[int, int, int]]:
        """Return settled, held and suspense of each limit by unit and window, as Redis counts."""
        view = await self.limits.list_limits(account, Principal(operator_id="root"), agent_id="")
        return {
            f"{each.limit.unit.name}/{each.limit.window.name}/{each.limit.scope.scope_id}": (
                each.settled,
                each.held,
                each.suspense,
            )
            for each in view.counters
        }

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Query Postgres."""
        connection = await asyncpg.connect(self.dsn)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
            return rows
        finally:
            await connection.close()

    async def ledger_cost(self) -> int:
        """Return what all entries come to."""
        return int((await self.fetch("SELECT coalesce(sum(cost_nano_usd), 0)::bigint FROM ledger_entries"))[0][0])


def asked(
    rig: Rig,
    account: AccountKey,
    agent_id: str,
    *,
    owner_id: str = "owner-1",
    request_id: str = "",
    call_index: int = 0,
    holder: str = "",
    body: str = "body",
    estimate: Estimate | None = None,
    operation: Operation = Operation.GUARDRAIL_EVALUATION,
    payer: Payer = Payer.OWNER,
    cause: PlatformCause | None = None,
    ttl: timedelta = timedelta(minutes=2),
) -> ReserveRequest:
    """Return a reserve as Router would ask for it."""
    call = Call(request_id or rig.new_id(), call_index, holder or rig.holder)
    facts = facts_of(call, agent_id=agent_id, owner_id=owner_id, operation=operation, payer=payer, body=body)
    command = ReserveCommand(
        call=call,
        account=account,
        estimate=estimate or Estimate(500, 400_000, 5_000_000_000, 100, 1_000),
        facts=facts,
        ttl_ms=ttl // timedelta(milliseconds=1),
    )
    return ReserveRequest(command, cause)


def settled(
    request: ReserveRequest,
    grant: Grant | None = None,
    *,
    cost: int = 1_000_000,
    tokens: tuple[int, int] = (480, 120),
    is_final: bool = True,
    in_suspense: bool = False,
    sealed_answer: bytes = b"",
) -> SettleCommand:
    """Return the settlement of a reserve."""
    command = request.command
    attempt = grant.hold.attempt if grant is not None else 1
    facts = msgspec.structs.replace(
        command.facts,
        attempt=attempt,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        cost_nano_usd=cost,
        usage_source=1,
        price_version="test",
        is_final=is_final,
        sealed_answer=sealed_answer,
    )
    return SettleCommand(
        reservation_id=reservation_id(command.call.request_id, attempt, command.account),
        attempt=attempt,
        call=command.call,
        account=command.account,
        facts=facts,
        is_final=is_final,
        in_suspense=in_suspense,
        held_tokens=command.estimate.input_tokens + (grant.hold.output_tokens if grant else 0),
        held_cost_nano_usd=grant.hold.cost_nano_usd if grant else 0,
        reserve_ms=grant.hold.reserve_ms if grant else 0,
    )


def released(request: ReserveRequest) -> ReleaseCommand:
    """Return the release of a reserve."""
    command = request.command
    return ReleaseCommand(call=command.call, account=command.account, for_account=command.account)


def owner(identifier: str = "owner-1") -> AccountKey:
    """Return an owner's account."""
    return account_key(AccountKind.OWNER, identifier)


def settings_for(
    dsn: str, redis_url: str, *, life: timedelta = timedelta(seconds=30), custody: CustodySettings | None = None
) -> Settings:
    """Return settings of a replica that is not served over the network."""
    tls = TlsSettings(certificate_file=NO_FILE, private_key_file=NO_FILE, ca_file=NO_FILE)
    return Settings(
        server=ServerSettings(tls=tls),
        postgres=PostgresSettings(dsn=SecretStr(dsn)),
        redis=RedisSettings(url=SecretStr(redis_url)),
        keyvault=PeerSettings(target="unused:1"),
        licence=LicenceSettings(life=life),
        custody=custody or CustodySettings(),
        defaults=DefaultsSettings(daily_cost_cap_nano_usd=BIG),
    )


@asynccontextmanager
async def open_rig(
    dsn: str,
    redis_url: str,
    *,
    clock: Clock | None = None,
    life: timedelta = timedelta(seconds=30),
    log: AuditLog | None = None,
    custody: CustodySettings | None = None,
) -> AsyncIterator[Rig]:
    """Open a replica on a migrated database, with its licence but without running workers."""
    used = clock or SystemClock()
    settings = settings_for(dsn, redis_url, life=life, custody=custody)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            open_database(dsn, pool_max=4, command_timeout=timedelta(seconds=10), acquire_timeout=timedelta(seconds=2))
        )
        connection = ScriptConnection(redis_url)
        stack.push_async_callback(connection.aclose)
        client = redis.asyncio.from_url(redis_url)
        stack.push_async_callback(client.aclose)
        runner = ScriptRunner(connection)
        stores = Stores(
            admission=RedisAdmissionStore(runner),
            counters=RedisCounterStore(runner),
            outbox=RedisOutbox(client),
            expiry=RedisHoldExpiry(client, runner),
            control=RedisControl(connection, client),
            directory=PostgresDirectory(database, default_plan="free"),
            limits=PostgresLimits(database),
            requests=PostgresRequests(database),
            licences=PostgresLicences(database),
            ledger=PostgresLedger(database),
            witnesses=PostgresCustodyWitnesses(database),
            custody_log=MemoryCustodyLog(log or AuditLog(1)),
            binder=RecordingBinder(),
        )
        replica = Replica(settings, stores, used)
        await replica.maintenance.round()
        await replica.custody.look()
        yield Rig(replica, dsn, redis_url, used)


async def migrated(dsn: str) -> str:
    """Run the migrations on a database and return its DSN."""
    await migrate(dsn)
    return dsn
