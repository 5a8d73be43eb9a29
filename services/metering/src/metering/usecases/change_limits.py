"""Setting, removing and reading limits."""

from datetime import datetime

import msgspec

from metering.domain.accounts import AccountKey
from metering.domain.enums import ScopeKind
from metering.domain.errors import (
    AccountNotFoundError,
    AgentNotFoundError,
    DependencyUnavailableError,
    RebuildingError,
)
from metering.domain.limits import Limit, LimitCounter
from metering.domain.principals import Principal, ensure_may_see
from metering.domain.reservations import Fenced, NeedsAccount, NeedsCalendar
from metering.domain.windows import Span, from_ms
from metering.ports import AccountReading, CounterStore, Directory, Limits
from metering.usecases.admission_gate import AdmissionGate
from metering.usecases.load_accounts import LoadAccounts
from metering.usecases.roll_calendars import RollCalendars

_ROUNDS_MAX = 4


class ApplyLimits:
    """Brings an account's limits to Redis, now if it can."""

    def __init__(self, *, gate: AdmissionGate, load_account: LoadAccounts) -> None:
        """Use ports."""
        self._gate = gate
        self._load_account = load_account

    async def __call__(self, account: AccountKey) -> bool:
        """Apply, and tell whether Redis has them; if not, a worker goes on trying."""
        try:
            await self._load_account(account, self._gate.enter_to_finish())
        except (RebuildingError, DependencyUnavailableError):
            return False
        return True


class SetLimit:
    """Sets a limit, or changes its amount."""

    def __init__(self, *, limits: Limits, directory: Directory, apply_limits: ApplyLimits) -> None:
        """Use ports."""
        self._limits = limits
        self._directory = directory
        self._apply = apply_limits

    async def __call__(self, limit: Limit, *, etag: str, acting_for: Principal) -> tuple[Limit, bool]:
        """Set a limit; return it as it is in force, and whether Redis has it yet.

        Raises:
            AccountNotFoundError: The account does not exist, or is another's.
            AgentNotFoundError: The scope names an agent that is not the account's.
            EtagMismatchError: The limit changed since it was read.
            DependencyUnavailableError: Postgres cannot be reached.
        """
        ensure_may_see(acting_for, limit.account)
        await self._ensure_scope(limit)
        written = await self._limits.set_limit(limit, etag=etag)
        return written, await self._apply(limit.account)

    async def _ensure_scope(self, limit: Limit) -> None:
        scope = limit.scope
        if scope.kind is ScopeKind.AGENT:
            agent = await self._directory.find_agent(scope.scope_id)
            if agent is None or agent.account != limit.account:
                raise AgentNotFoundError("The account has no such agent.", agent_id=scope.scope_id)
        if scope.kind is ScopeKind.OWNER and not await self._directory.is_owner_of(limit.account, scope.scope_id):
            raise AccountNotFoundError("The owner has no agent under this account.")


class RemoveLimit:
    """Removes a limit."""

    def __init__(self, *, limits: Limits, apply_limits: ApplyLimits) -> None:
        """Use ports."""
        self._limits = limits
        self._apply = apply_limits

    async def __call__(self, account: AccountKey, limit_id: str, acting_for: Principal) -> bool:
        """Remove a limit, and tell whether Redis knows yet.

        Raises:
            LimitNotFoundError: There is none.
            AccountNotFoundError: The account does not exist, or is another's.
            InvalidArgumentError: It is the default daily cost cap.
            DependencyUnavailableError: Postgres cannot be reached.
        """
        ensure_may_see(acting_for, account)
        await self._limits.remove_limit(account, limit_id)
        return await self._apply(account)


class LimitsView(msgspec.Struct, frozen=True):
    """Limits with what is used of them, and when Redis was read."""

    counters: tuple[LimitCounter, ...]
    as_of: datetime


class ListLimits:
    """Reads limits with what is used of each now."""

    def __init__(
        self,
        *,
        limits: Limits,
        directory: Directory,
        counters: CounterStore,
        gate: AdmissionGate,
        load_account: LoadAccounts,
        roll_calendar: RollCalendars,
    ) -> None:
        """Use ports."""
        self._limits = limits
        self._directory = directory
        self._counters = counters
        self._gate = gate
        self._load_account = load_account
        self._roll_calendar = roll_calendar

    async def __call__(self, account: AccountKey, acting_for: Principal, *, agent_id: str) -> LimitsView:
        """Return the limits of an account by id, or those of them that apply to an agent.

        Raises:
            AccountNotFoundError: The account does not exist, or is another's.
            RebuildingError: Counters are being rebuilt.
            DependencyUnavailableError: Redis or Postgres cannot be reached.
        """
        ensure_may_see(acting_for, account)
        if await self._directory.find_account(account) is None:
            raise AccountNotFoundError("There is no such account of this principal.")
        limits = await self._limits.list_limits(account)
        if agent_id:
            agent = await self._directory.find_agent(agent_id)
            owner_id = agent.owner_id if agent is not None and agent.account == account else ""
            limits = [limit for limit in limits if _concerns(limit, agent_id=agent_id, owner_id=owner_id)]
        reading = await self._read(account)
        by_id = {counter.limit_id: counter for counter in reading.counters}
        counters = tuple(
            LimitCounter(
                limit,
                Span(found.start, found.end),
                settled=max(0, found.counted - found.held - found.suspense),
                held=found.held,
                suspense=found.suspense,
            )
            for limit in limits
            if (found := by_id.get(limit.limit_id)) is not None
        )
        return LimitsView(counters, from_ms(reading.now_ms))

    async def _read(self, account: AccountKey) -> AccountReading:
        licence = self._gate.enter_to_finish()
        for _ in range(_ROUNDS_MAX):
            reading = await self._counters.read(account, licence)
            if isinstance(reading, AccountReading):
                return reading
            if isinstance(reading, NeedsAccount):
                await self._load_account(account, licence)
            elif isinstance(reading, NeedsCalendar):
                await self._roll_calendar(account, licence, now_ms=reading.now_ms)
            elif isinstance(reading, Fenced):
                self._gate.suspect()
                break
        raise RebuildingError("Counters are being rebuilt from the ledger; retry soon.")


def _concerns(limit: Limit, *, agent_id: str, owner_id: str) -> bool:
    if limit.scope.kind is ScopeKind.ACCOUNT:
        return True
    return limit.scope.scope_id == (owner_id if limit.scope.kind is ScopeKind.OWNER else agent_id)
