"""The admission port on each of its adapters, with time that moves on demand.

Importable by tests as `services.metering.tests.contract.benches`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec
import redis.asyncio
from typing_extensions import override

from metering.adapters.memory.admission import MemoryAdmissionStore
from metering.adapters.memory.counters import MemoryCounterStore
from metering.adapters.memory.outbox import MemoryHoldExpiry, MemoryOutbox
from metering.adapters.memory.state import MemoryState
from metering.adapters.redis import keys
from metering.adapters.redis.admission import RedisAdmissionStore
from metering.adapters.redis.connection import ScriptConnection
from metering.adapters.redis.control import RedisControl
from metering.adapters.redis.counters import RedisCounterStore
from metering.adapters.redis.outbox import RedisHoldExpiry, RedisOutbox
from metering.adapters.redis.scripts import ScriptRunner
from metering.domain.accounts import PARTITIONS, AccountKey, account_key, partition_of
from metering.domain.enums import AccountKind, Operation, Payer, ScopeKind, Unit, Window
from metering.domain.ledger import reservation_id
from metering.domain.licences import Licence, StoreIdentity, Watermark
from metering.domain.limits import OWN_PAYERS, Limit, Scope
from metering.domain.matching import window_of
from metering.domain.outbox import OutboxRecord
from metering.domain.plans import PlanTerms
from metering.domain.reservations import (
    Call,
    Estimate,
    ExtendCommand,
    ExtendOutcome,
    Granted,
    ReleaseCommand,
    ReleaseOutcome,
    ReserveCommand,
    ReserveOutcome,
    SettleCommand,
    SettleOutcome,
)
from metering.domain.windows import MINUTE_MS, Calendar, calendar_at, from_ms, to_ms
from metering.ports import (
    AccountLoaded,
    AccountReading,
    AccountSnapshot,
    AdmissionStore,
    CounterStore,
    History,
    HoldExpiry,
    LoadStarted,
    Outbox,
)
from servicekit.errors import DomainError
from servicekit.ids import new_uuid7
from services.metering.tests.calls import facts_of

ACCOUNT = account_key(AccountKind.OWNER, "owner-1")
ROUTER = "01890000-0000-7000-8000-000000000001"
OTHER_ROUTER = "01890000-0000-7000-8000-000000000002"
PLAN = msgspec.msgpack.encode(PlanTerms("free", 1, ("analytics",)))


class TimeMover(Protocol):
    """How a bench's time is read and moved."""

    async def now_ms(self) -> int:
        """Return the time that scripts see."""
        ...

    async def move_to(self, now_ms: int) -> None:
        """Move time forward."""
        ...

    async def step_back(self, by: timedelta) -> None:
        """Step the server's clock back, if it has one that can be."""
        ...


class Bench:
    """One adapter, and short words for what the suite says often."""

    def __init__(
        self,
        *,
        admission: AdmissionStore,
        counters: CounterStore,
        outbox: Outbox,
        expiry: HoldExpiry,
        licence: Licence,
        time: TimeMover,
    ) -> None:
        self.admission = admission
        self.counters = counters
        self.outbox = outbox
        self.expiry = expiry
        self.licence = licence
        self.time = time
        self.version = 0

    async def new_id(self) -> str:
        """Return a new request id."""
        return new_uuid7(from_ms(await self.time.now_ms()))

    async def load(
        self, *limits: Limit, settled: int = 0, time_zone: str = "UTC", account: AccountKey = ACCOUNT
    ) -> None:
        """Load an account with limits, each with this much settled."""
        self.version += 1
        started = await self.counters.begin_load(account, self.licence, version=self.version, stand_still_ms=5_000)
        assert isinstance(started, LoadStarted), started
        calendar = calendar_at(from_ms(started.now_ms), time_zone)
        loaded = await self.counters.load(
            snapshot(account, limits, calendar, started, version=self.version, settled=settled), self.licence
        )
        assert isinstance(loaded, AccountLoaded), loaded

    async def reserve(self, command: ReserveCommand, *, history: History | None = None) -> ReserveOutcome | DomainError:
        """Reserve one."""
        histories = {0: history} if history is not None else None
        return (await self.admission.reserve([command], self.licence, histories=histories))[0]

    async def granted(self, command: ReserveCommand) -> Granted:
        """Reserve one, which must be granted."""
        outcome = await self.reserve(command)
        assert isinstance(outcome, Granted), outcome
        return outcome

    async def settle(self, command: SettleCommand, *, history: History | None = None) -> SettleOutcome | DomainError:
        """Settle one."""
        histories = {0: history} if history is not None else None
        return (await self.admission.settle([command], self.licence, histories=histories))[0]

    async def release(self, command: ReserveCommand) -> ReleaseOutcome | DomainError:
        """Release what was asked for by a command."""
        released = ReleaseCommand(call=command.call, account=command.account, for_account=command.account)
        return (await self.admission.release([released], self.licence))[0]

    async def extend(self, command: ReserveCommand, *, ttl: timedelta) -> ExtendOutcome | DomainError:
        """Extend the first attempt of what was asked for."""
        extended = ExtendCommand(
            reservation_id=reservation_id(command.call.request_id, 1, command.account),
            call=command.call,
            account=command.account,
            ttl_ms=ttl // timedelta(milliseconds=1),
        )
        return (await self.admission.extend([extended], self.licence))[0]

    async def used(self) -> list[tuple[int, int, int]]:
        """Return counted, held and suspense of every limit, in order of their slots."""
        reading = await self.counters.read(ACCOUNT, self.licence)
        assert isinstance(reading, AccountReading), reading
        return [(each.counted, each.held, each.suspense) for each in reading.counters]

    async def advance(self, delta: timedelta) -> None:
        """Move time forward."""
        await self.time.move_to(await self.time.now_ms() + delta // timedelta(milliseconds=1))

    async def roll(self, *, time_zone: str = "UTC") -> None:
        """Give the account the calendar of now."""
        now = from_ms(await self.time.now_ms())
        await self.counters.roll(ACCOUNT, self.licence, calendar_at(now, time_zone))

    async def expire_due(self) -> int:
        """Move on what is due; return how many moved."""
        due = await self.expiry.due(self.licence, range(PARTITIONS), count=100)
        return sum(payer is not None for payer in await self.expiry.expire(due, self.licence))

    async def records(self) -> list[OutboxRecord]:
        """Return the account's outbox."""
        partition = partition_of(ACCOUNT)
        return await self.outbox.read([Watermark(partition, self.licence.generations[partition], 0)], count=1_000)


class _MemoryTime(TimeMover):
    def __init__(self, state: MemoryState) -> None:
        self._state = state

    @override
    async def now_ms(self) -> int:
        return max(self._state.now_ms, self._state.partitions[partition_of(ACCOUNT)].seen_ms)

    @override
    async def move_to(self, now_ms: int) -> None:
        self._state.now_ms = now_ms

    @override
    async def step_back(self, by: timedelta) -> None:
        self._state.now_ms -= by // timedelta(milliseconds=1)


class _RedisTime(TimeMover):
    """Redis' own clock cannot be set; the highest time seen can, which is what scripts go by."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    @override
    async def now_ms(self) -> int:
        seconds, micros = await self._client.time()
        seen = await self._client.hget(keys.meta_key(partition_of(ACCOUNT)), "t")
        return int(max(seconds * 1_000 + micros // 1_000, int(seen or 0)))

    @override
    async def move_to(self, now_ms: int) -> None:
        await self._client.hset(keys.meta_key(partition_of(ACCOUNT)), "t", str(now_ms))

    @override
    async def step_back(self, by: timedelta) -> None:
        # Its clock is behind the time that was moved to already.
        return


@asynccontextmanager
async def memory_bench() -> AsyncIterator[Bench]:
    """Open the memory adapter."""
    state = MemoryState(to_ms(datetime(2026, 1, 15, 12, 0, 30, tzinfo=UTC)))
    yield Bench(
        admission=MemoryAdmissionStore(state),
        counters=MemoryCounterStore(state),
        outbox=MemoryOutbox(state),
        expiry=MemoryHoldExpiry(state),
        licence=Licence(StoreIdentity("memory", "memory"), (1,) * PARTITIONS),
        time=_MemoryTime(state),
    )


@asynccontextmanager
async def redis_bench(url: str) -> AsyncIterator[Bench]:
    """Open the Redis adapter on a server that may be flushed."""
    connection = ScriptConnection(url)
    client = redis.asyncio.from_url(url)
    try:
        await client.flushall()
        control = RedisControl(connection, client)
        identity = await control.identity()
        generations = dict.fromkeys(range(PARTITIONS), 1)
        await control.restore(generations, seen_ms={}, operations=[], holds=[])
        runner = ScriptRunner(connection)
        time = _RedisTime(client)
        # The middle of a day that is not over soon: time only moves when the suite moves it.
        now = from_ms(await time.now_ms())
        noon = (now + timedelta(days=1)).replace(hour=12, minute=0, second=30, microsecond=0)
        await time.move_to(to_ms(noon))
        yield Bench(
            admission=RedisAdmissionStore(runner),
            counters=RedisCounterStore(runner),
            outbox=RedisOutbox(client),
            expiry=RedisHoldExpiry(client, runner),
            licence=Licence(identity, (1,) * PARTITIONS),
            time=time,
        )
    finally:
        await connection.aclose()
        await client.aclose()


def limit(
    slot: int,
    unit: Unit,
    amount: int,
    *,
    window: Window = Window.DAY,
    scope: Scope | None = None,
    operation: Operation | None = None,
    payers: frozenset[Payer] = OWN_PAYERS,
    is_hard: bool = True,
    is_utc: bool = False,
) -> Limit:
    """Return a limit of the suite's account."""
    return Limit(
        account=ACCOUNT,
        scope=scope or Scope(ScopeKind.ACCOUNT),
        operation=operation,
        unit=unit,
        window=window,
        payers=payers,
        amount=amount,
        is_hard=is_hard,
        is_utc=is_utc,
        slot=slot,
    )


def snapshot(
    account: AccountKey,
    limits: tuple[Limit, ...],
    calendar: Calendar,
    started: LoadStarted,
    *,
    version: int,
    settled: int = 0,
) -> AccountSnapshot:
    """Return what an account is loaded with."""
    counters = []
    for each in limits:
        span = window_of(each, started.now_ms, calendar)
        counters.append((each, span.start, span.end, settled))
    return AccountSnapshot(account, version, started.sequence, calendar, PLAN, tuple(counters))


def asking(
    request_id: str,
    *,
    call_index: int = 0,
    holder: str = ROUTER,
    body: str = "body",
    estimate: Estimate | None = None,
    operation: Operation = Operation.GUARDRAIL_EVALUATION,
    payer: Payer = Payer.OWNER,
    agent_id: str = "agent-1",
    owner_id: str = "owner-1",
    ttl: timedelta = timedelta(minutes=2),
) -> ReserveCommand:
    """Return a reserve: 100 tokens in, 10 to 1,000 out, a fixed 1,000 and 2 nano-USD a token."""
    call = Call(request_id, call_index, holder)
    facts = facts_of(call, agent_id=agent_id, owner_id=owner_id, operation=operation, payer=payer, body=body)
    return ReserveCommand(
        call=call,
        account=ACCOUNT,
        estimate=estimate or Estimate(100, 1_000, 2_000_000, 10, 1_000),
        facts=facts,
        ttl_ms=ttl // timedelta(milliseconds=1),
    )


def telling(
    command: ReserveCommand,
    *,
    attempt: int = 1,
    cost: int = 1_500,
    tokens: tuple[int, int] = (90, 60),
    is_final: bool = True,
    in_suspense: bool = False,
    reserve_ms: int = 0,
) -> SettleCommand:
    """Return the settlement of a reserve."""
    facts = msgspec.structs.replace(
        command.facts,
        attempt=attempt,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        cost_nano_usd=cost,
        is_final=is_final,
    )
    return SettleCommand(
        reservation_id=reservation_id(command.call.request_id, attempt, command.account),
        attempt=attempt,
        call=command.call,
        account=command.account,
        facts=facts,
        is_final=is_final,
        in_suspense=in_suspense,
        held_tokens=1_100,
        held_cost_nano_usd=3_000,
        reserve_ms=reserve_ms,
    )


def minute_of(now_ms: int) -> int:
    """Return the minute since the epoch around a time."""
    return now_ms // MINUTE_MS
