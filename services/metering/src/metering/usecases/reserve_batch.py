"""Reserving: the payer is decided, then each call is held on every limit that applies, or refused."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import msgspec

from metering.domain.accounts import PLATFORM, AccountKey, Agent
from metering.domain.enums import Leg, Operation, Payer, PlatformCause
from metering.domain.errors import (
    AgentNotFoundError,
    CapReachedError,
    DependencyUnavailableError,
    InProgressError,
    RebuildingError,
    RequestIdReusedError,
    ReservationClosedError,
)
from metering.domain.ledger import reservation_id
from metering.domain.licences import Licence
from metering.domain.policy import decide_payer
from metering.domain.reservations import (
    CallClosed,
    Closed,
    Denied,
    Fenced,
    Granted,
    InProgress,
    NeedsAccount,
    NeedsCalendar,
    NeedsHistory,
    ReleaseCommand,
    ReserveCommand,
    ReserveOutcome,
    Reused,
    TooManyAttempts,
)
from metering.ports import AdmissionStore, History, Ledger
from metering.usecases.admission_gate import AdmissionGate
from metering.usecases.agent_directory import AgentDirectory
from metering.usecases.final_outcomes import FinalOutcome, FinalOutcomes
from metering.usecases.load_accounts import LoadAccounts
from metering.usecases.roll_calendars import RollCalendars
from servicekit.clock import Clock
from servicekit.errors import DomainError, FieldViolation, InvalidArgumentError

# The platform's leg outlives the call's own, which it follows.
_PLATFORM_LEG_LONGER_MS: Final = 60_000


class ReserveRequest(msgspec.Struct, frozen=True, gc=False):
    """One call to hold, as its caller asks; the payer's rule is not decided yet."""

    command: ReserveCommand
    cause: PlatformCause | None


class Grant(msgspec.Struct, frozen=True, gc=False):
    """A hold, its id and the rule that let its payer pay."""

    reservation_id: str
    hold: Granted
    payer_rule: str


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How often a reserve looks again for an account that is being loaded elsewhere."""

    rounds_max: int = 12
    pause: timedelta = timedelta(milliseconds=50)


ReserveResult = Grant | FinalOutcome | DomainError


class ReserveBatch:
    """Answers each item by itself; fails as a whole only when nothing was applied."""

    def __init__(  # noqa: PLR0913 (its ports; keyword-only)
        self,
        *,
        store: AdmissionStore,
        ledger: Ledger,
        gate: AdmissionGate,
        agents: AgentDirectory,
        load_account: LoadAccounts,
        roll_calendar: RollCalendars,
        outcomes: FinalOutcomes,
        clock: Clock,
        patience: Patience | None = None,
    ) -> None:
        """Use ports."""
        self._store = store
        self._ledger = ledger
        self._gate = gate
        self._agents = agents
        self._load_account = load_account
        self._roll_calendar = roll_calendar
        self._outcomes = outcomes
        self._clock = clock
        self._patience = patience or Patience()

    async def __call__(self, requests: Sequence[ReserveRequest]) -> list[ReserveResult]:
        """Reserve a batch.

        Raises:
            CustodyLogRolledBackError: KeyVault's log contradicts what was witnessed of it.
            RebuildingError: Counters are being rebuilt.
            DependencyUnavailableError: Redis cannot be reached, or the licence has ended.
            OverloadedError: A backlog is at its bound.
        """
        licence = self._gate.enter()
        results: list[ReserveResult | None] = [None] * len(requests)
        commands: dict[int, ReserveCommand] = {}
        for i, request in enumerate(requests):
            decided = await self._decide(request)
            if isinstance(decided, DomainError):
                results[i] = decided
            else:
                commands[i] = decided
        # The platform's own work stands in the platform's account already.
        platform_paid = {
            i: command
            for i, command in commands.items()
            if command.facts.payer == Payer.PLATFORM and command.account != PLATFORM
        }
        if platform_paid:
            await self._hold_platform_legs(platform_paid, commands, results, licence)
        outcomes = await self._run(commands, licence)
        if platform_paid:
            await self._give_back_lonely_legs(platform_paid, outcomes, licence)
        self._gate.confirm(licence)
        for i, outcome in outcomes.items():
            results[i] = await self._result(commands[i], outcome, licence)
        return [result for result in results if result is not None]

    async def _decide(self, request: ReserveRequest) -> ReserveCommand | DomainError:
        """Check agent, owner and account against each other, and decide who pays."""
        facts = request.command.facts
        try:
            if facts.agent_id:
                agent = self._agents.known_agent(facts.agent_id) or await self._agents.agent(facts.agent_id)
                _ensure_binding(agent, owner_id=facts.owner_id, account=request.command.account)
            else:
                await self._agents.ensure_account(request.command.account)
            if facts.payer != Payer.PLATFORM:
                return request.command
            policy = await self._agents.policy()
            rule = decide_payer(policy, payer=Payer.PLATFORM, operation=Operation(facts.operation), cause=request.cause)
        except DomainError as error:
            return error
        return msgspec.structs.replace(request.command, facts=msgspec.structs.replace(facts, payer_rule=rule))

    async def _hold_platform_legs(
        self,
        paid: dict[int, ReserveCommand],
        commands: dict[int, ReserveCommand],
        results: list[ReserveResult | None],
        licence: Licence,
    ) -> None:
        """Hold on the platform's budget first; what does not fit there is denied before its own leg is asked for."""
        legs = {i: _platform_leg(command) for i, command in paid.items()}
        for i, outcome in (await self._run(legs, licence)).items():
            if isinstance(outcome, (Denied, DomainError)):
                results[i] = await self._result(legs[i], outcome, licence)
                del commands[i]
                del paid[i]

    async def _give_back_lonely_legs(
        self, paid: Mapping[int, ReserveCommand], outcomes: Mapping[int, ReserveOutcome | DomainError], licence: Licence
    ) -> None:
        lonely = [command for i, command in paid.items() if isinstance(outcomes[i], Denied)]
        if lonely:
            releases = [
                ReleaseCommand(
                    call=command.call,
                    account=PLATFORM,
                    for_account=command.account,
                    leg=Leg.PLATFORM,
                    forgets=True,
                )
                for command in lonely
            ]
            await self._store.release(releases, licence)

    async def _run(
        self, commands: Mapping[int, ReserveCommand], licence: Licence
    ) -> dict[int, ReserveOutcome | DomainError]:
        """Run commands, and again those for which something had to be fetched first."""
        outcomes: dict[int, ReserveOutcome | DomainError] = {}
        open_items = list(commands)
        histories: dict[int, History] = {}
        for round_number in range(self._patience.rounds_max):
            if not open_items:
                break
            batch = [commands[i] for i in open_items]
            known = {position: histories[i] for position, i in enumerate(open_items) if i in histories}
            replies = await self._store.reserve(batch, licence, histories=known)
            outcomes.update(zip(open_items, replies, strict=True))
            open_items = [i for i in open_items if isinstance(outcomes[i], (NeedsAccount, NeedsCalendar, NeedsHistory))]
            if open_items:
                await self._fetch(commands, outcomes, open_items, histories, licence)
                open_items = [i for i in open_items if not isinstance(outcomes[i], DomainError)]
                if round_number and open_items:
                    await self._clock.sleep(self._patience.pause)
        for i in open_items:
            outcomes[i] = DependencyUnavailableError("The account is being loaded; retry soon.", dependency="redis")
        return outcomes

    async def _fetch(
        self,
        commands: Mapping[int, ReserveCommand],
        outcomes: dict[int, ReserveOutcome | DomainError],
        items: Sequence[int],
        histories: dict[int, History],
        licence: Licence,
    ) -> None:
        """Fetch what each item lacks, once an account."""

        async def fetch(i: int) -> None:
            command, outcome = commands[i], outcomes[i]
            try:
                if isinstance(outcome, NeedsHistory):
                    found = await self._ledger.find_operation(command.call.request_id, command.account)
                    histories[i] = History(found)
                elif isinstance(outcome, NeedsCalendar):
                    await self._roll_calendar(command.account, licence, now_ms=outcome.now_ms)
                else:
                    await self._load_account(command.account, licence)
            except DomainError as error:
                outcomes[i] = error

        await asyncio.gather(*(fetch(i) for i in items))

    async def _result(
        self, command: ReserveCommand, outcome: ReserveOutcome | DomainError, licence: Licence
    ) -> ReserveResult:
        if isinstance(outcome, Granted):
            identifier = reservation_id(command.call.request_id, outcome.attempt, command.account)
            return Grant(identifier, outcome, command.facts.payer_rule)
        if isinstance(outcome, DomainError):
            return outcome
        if isinstance(outcome, Closed):
            try:
                return await self._outcomes.read(
                    command.call.request_id,
                    command.account,
                    licence,
                    sequence=outcome.sequence,
                    attempts=outcome.attempts,
                )
            except DomainError as error:
                return error
        return self._refusal(command, outcome)

    def _refusal(self, command: ReserveCommand, outcome: ReserveOutcome) -> DomainError:
        if isinstance(outcome, Denied):
            return CapReachedError(outcome.denials)
        if isinstance(outcome, InProgress):
            return InProgressError(
                "Another Router holds a reservation for this request id.",
                retry_after=timedelta(milliseconds=max(outcome.retry_ms, 100)),
            )
        if isinstance(outcome, Reused):
            return RequestIdReusedError("The request id was used with another body; take a new one.")
        if isinstance(outcome, CallClosed):
            return ReservationClosedError(
                f"Call {command.call.call_index} of this operation is closed; take the next call index.",
                reservation_id="",
            )
        if isinstance(outcome, TooManyAttempts):
            return InvalidArgumentError(
                violations=[
                    FieldViolation(
                        field="call.call_index",
                        reason="TOO_MANY_ATTEMPTS",
                        description="the operation has made as many provider calls as one may; start another operation",
                    )
                ]
            )
        if isinstance(outcome, Fenced):
            self._gate.suspect()
        return RebuildingError("Counters are being rebuilt from the ledger; retry soon.")


def _ensure_binding(agent: Agent, *, owner_id: str, account: AccountKey) -> None:
    # Missing and another's look the same, so that ids cannot be probed.
    if agent.owner_id != owner_id or agent.account != account:
        raise AgentNotFoundError("The agent is not registered under this owner and account.", agent_id=agent.agent_id)


def _platform_leg(command: ReserveCommand) -> ReserveCommand:
    facts = msgspec.structs.replace(command.facts, leg=int(Leg.PLATFORM), for_account=command.account)
    return msgspec.structs.replace(
        command,
        account=PLATFORM,
        facts=facts,
        leg=Leg.PLATFORM,
        ttl_ms=command.ttl_ms + _PLATFORM_LEG_LONGER_MS,
    )
