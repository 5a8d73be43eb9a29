"""Reserve, settle, release, extend and lookup, in memory."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from typing_extensions import override

from metering.adapters.memory.state import (
    Account,
    Attempt,
    Hold,
    MemoryState,
    Partition,
    Record,
    denial,
    has_rolled,
    may_be_forgotten,
    next_midnight,
)
from metering.domain.accounts import AccountKey
from metering.domain.enums import CallState, EventKind, Leg, Operation, OperationState, Payer, Unit
from metering.domain.ledger import leg_id
from metering.domain.licences import Licence
from metering.domain.money import output_cost
from metering.domain.reservations import (
    ATTEMPTS_MAX,
    AlreadySettled,
    CallClosed,
    Closed,
    Denied,
    Estimate,
    ExtendCommand,
    Extended,
    ExtendOutcome,
    Fenced,
    Found,
    Granted,
    InProgress,
    LookupCommand,
    LookupOutcome,
    NeedsAccount,
    NeedsCalendar,
    NeedsHistory,
    NotHeld,
    ReleaseCommand,
    Released,
    ReleaseOutcome,
    Repeat,
    ReserveCommand,
    ReserveOutcome,
    Reused,
    SettleCommand,
    Settled,
    SettleOutcome,
    TooManyAttempts,
)
from metering.ports import AdmissionStore, History
from servicekit.errors import DomainError

_LAST_STATES: Final = {
    CallState.UNKNOWN: OperationState.UNKNOWN,
    CallState.SETTLED: OperationState.BILLED,
    CallState.RELEASED: OperationState.RELEASED,
    CallState.SUSPENSE: OperationState.SUSPENSE,
    CallState.POSTED: OperationState.SUSPENSE,
}


class MemoryAdmissionStore(AdmissionStore):
    """Each command is one step, since nothing awaits in between."""

    def __init__(self, state: MemoryState) -> None:
        """Work on a state."""
        self._state = state

    @override
    async def reserve(
        self, commands: Sequence[ReserveCommand], licence: Licence, *, histories: Mapping[int, History] | None = None
    ) -> list[ReserveOutcome | DomainError]:
        known = histories or {}
        return [self._reserve(command, licence, known.get(i)) for i, command in enumerate(commands)]

    def _reserve(self, command: ReserveCommand, licence: Licence, history: History | None) -> ReserveOutcome:
        partition = self._state.enter(command.account, licence)
        if partition is None:
            return Fenced()
        record = self._state.record(partition, command.call.request_id, command.account, history)
        if record is None:
            return NeedsHistory()
        if not record.body_hash:
            record.body_hash = command.facts.body_hash
        if not record.holder:
            record.holder = command.call.holder
        refusal = self._refusal(partition, record, command)
        return refusal if refusal is not None else self._hold(partition, record, command)

    def _refusal(self, partition: Partition, record: Record, command: ReserveCommand) -> ReserveOutcome | None:
        if record.body_hash != command.facts.body_hash:
            return Reused()
        if record.closed_at:
            return Closed(record.closed_at, len(record.attempts))
        number = record.find(command.call.holder, command.call.call_index)
        if number:
            return self._again(partition, record, number, command)
        for each in record.attempts:
            if each.state is CallState.HELD and each.holder != command.call.holder:
                return InProgress(max(0, each.figure - partition.seen_ms))
        return TooManyAttempts() if len(record.attempts) >= ATTEMPTS_MAX else None

    def _again(
        self, partition: Partition, record: Record, number: int, command: ReserveCommand
    ) -> ReserveOutcome | None:
        attempt = record.attempts[number - 1]
        if attempt.state is not CallState.HELD:
            return CallClosed(attempt.state)
        account = partition.accounts[command.account]
        hold = account.holds[_id(command, number)]
        return Granted(
            number,
            hold.output_tokens,
            hold.cost,
            hold.due_ms,
            hold.reserve_ms,
            partition.sequence,
            account.plan,
        )

    def _hold(self, partition: Partition, record: Record, command: ReserveCommand) -> ReserveOutcome:
        account, now = partition.accounts[command.account], partition.seen_ms
        if account.version is None or account.calendar is None:
            return NeedsAccount()
        if account.loading_until > now:
            return NeedsAccount(is_loading=True)
        if has_rolled(now, account.calendar):
            return NeedsCalendar(now)
        facts, estimate = command.facts, command.estimate
        number = len(record.attempts) + 1
        hold = Hold(
            command.call.request_id,
            number,
            CallState.HELD,
            now,
            now + command.ttl_ms,
            0,
            0,
            0,
            0 if record.is_counted else 1,
            Payer(facts.payer),
            Operation(facts.operation),
            facts.agent_id,
            facts.owner_id,
            facts.payer_rule,
            Leg(facts.leg),
        )
        output = self._fit(account, hold, estimate)
        if isinstance(output, Denied):
            return output
        hold.output_tokens = output
        hold.tokens = estimate.input_tokens + output
        hold.cost = estimate.fixed_cost_nano_usd + output_cost(output, estimate.output_nano_usd_per_mtok)
        account.join(hold, now)
        account.adjust(hold, calls=hold.calls, tokens=hold.tokens, cost=hold.cost)
        identifier = _id(command, number)
        account.holds[identifier] = hold
        record.attempts.append(Attempt(command.call.holder, command.call.call_index, CallState.HELD, hold.due_ms))
        record.holder, record.is_counted = command.call.holder, True
        self._state.keep(partition, command.call.request_id, command.account, record)
        numbers = (now, now, hold.due_ms, output, hold.tokens, hold.cost, hold.calls)
        numbered = msgspec.structs.replace(facts, attempt=number)
        self._state.emit(partition, EventKind.RESERVED, command.account, identifier, numbers, facts=numbered)
        return Granted(number, output, hold.cost, hold.due_ms, now, partition.sequence, account.plan)

    def _fit(self, account: Account, hold: Hold, estimate: Estimate) -> int | Denied:
        """Return the largest output that fits every hard limit, or the limits that even the least does not fit."""
        price, fixed = estimate.output_nano_usd_per_mtok, estimate.fixed_cost_nano_usd
        least = {
            Unit.CALLS: hold.calls,
            Unit.TOKENS: estimate.input_tokens + estimate.output_tokens_min,
            Unit.COST: fixed + output_cost(estimate.output_tokens_min, price),
        }
        output, denials = estimate.output_tokens_max, []
        for limit, span in account.matching(hold, hold.reserve_ms):
            used = account.counters.get((limit.slot, span.start), 0)
            room = limit.amount - used
            if not limit.is_hard:
                continue
            if least[limit.unit] > 0 and least[limit.unit] > room:
                denials.append(denial(limit, span, used, least[limit.unit]))
            elif limit.unit is Unit.TOKENS:
                output = min(output, room - estimate.input_tokens)
            elif limit.unit is Unit.COST and price:
                output = min(output, (room - fixed) * 1_000_000 // price)
        return Denied(tuple(denials)) if denials else output

    @override
    async def settle(
        self, commands: Sequence[SettleCommand], licence: Licence, *, histories: Mapping[int, History] | None = None
    ) -> list[SettleOutcome | DomainError]:
        known = histories or {}
        return [self._settle(command, licence, known.get(i)) for i, command in enumerate(commands)]

    def _settle(self, command: SettleCommand, licence: Licence, history: History | None) -> SettleOutcome:
        partition = self._state.enter(command.account, licence)
        if partition is None:
            return Fenced()
        account = partition.accounts[command.account]
        hold = account.holds.get(command.reservation_id)
        record = self._state.record(
            partition, command.call.request_id, command.account, history, is_known=hold is not None
        )
        if record is None:
            return NeedsHistory()
        attempt = record.at(command.attempt)
        record.body_hash = record.body_hash or command.facts.body_hash
        if hold is None and (
            attempt.state is CallState.SETTLED or (attempt.state is CallState.POSTED and command.in_suspense)
        ):
            return Repeat(partition.sequence, attempt.figure, attempt.tokens)
        if hold is not None and hold.state is CallState.SUSPENSE and command.in_suspense:
            return Repeat(partition.sequence, hold.cost, hold.tokens)
        was_posted = attempt.state is CallState.POSTED
        held_tokens, held_cost = command.held_tokens, command.held_cost_nano_usd
        if hold is None:
            hold = self._lost_hold(partition, account, record, command)
            held_cost = hold.cost if was_posted else held_cost
        else:
            held_tokens, held_cost = hold.tokens, hold.cost
        record.is_counted = True
        if not attempt.holder:
            attempt.holder, attempt.call_index = command.call.holder, command.call.call_index
        if command.in_suspense:
            return self._suspend(partition, record, hold, command, (held_tokens, held_cost))
        return self._close(partition, record, hold, command, held_cost=held_cost, was_posted=was_posted)

    def _lost_hold(self, partition: Partition, account: Account, record: Record, command: SettleCommand) -> Hold:
        facts, attempt = command.facts, record.at(command.attempt)
        reserve_ms = command.reserve_ms if 0 < command.reserve_ms <= partition.seen_ms else partition.seen_ms
        hold = Hold(
            command.call.request_id,
            command.attempt,
            attempt.state,
            reserve_ms,
            0,
            0,
            0,
            0,
            0 if record.is_counted else 1,
            Payer(facts.payer),
            Operation(facts.operation),
            facts.agent_id,
            facts.owner_id,
            facts.payer_rule,
            Leg(facts.leg),
        )
        if attempt.state is CallState.POSTED:
            hold.tokens, hold.cost = attempt.tokens, attempt.figure
        account.join(hold, partition.seen_ms)
        account.adjust(hold, calls=hold.calls, tokens=0, cost=0)
        return hold

    def _suspend(
        self, partition: Partition, record: Record, hold: Hold, command: SettleCommand, held: tuple[int, int]
    ) -> SettleOutcome:
        account, attempt = partition.accounts[command.account], record.at(command.attempt)
        account.adjust(hold, calls=0, tokens=held[0] - hold.tokens, cost=held[1] - hold.cost)
        hold.state, hold.due_ms = CallState.SUSPENSE, next_midnight(hold.reserve_ms)
        hold.tokens, hold.cost = held
        account.holds[command.reservation_id] = hold
        attempt.state, attempt.figure, attempt.tokens = CallState.SUSPENSE, hold.cost, hold.tokens
        self._state.keep(partition, command.call.request_id, command.account, record)
        numbers = (
            partition.seen_ms,
            hold.reserve_ms,
            hold.due_ms,
            hold.output_tokens,
            hold.tokens,
            hold.cost,
            hold.calls,
        )
        self._state.emit(
            partition,
            EventKind.SUSPENDED,
            command.account,
            command.reservation_id,
            numbers,
            facts=command.facts,
        )
        return Settled(partition.sequence, 0)

    def _close(
        self,
        partition: Partition,
        record: Record,
        hold: Hold,
        command: SettleCommand,
        *,
        held_cost: int,
        was_posted: bool,
    ) -> SettleOutcome:
        account, attempt, facts = partition.accounts[command.account], record.at(command.attempt), command.facts
        tokens, cost = facts.input_tokens + facts.output_tokens, facts.cost_nano_usd
        account.adjust(hold, calls=0, tokens=tokens - hold.tokens, cost=cost - hold.cost)
        account.holds.pop(command.reservation_id, None)
        attempt.state, attempt.figure, attempt.tokens = CallState.SETTLED, cost, tokens
        overrun = max(0, cost - held_cost)
        numbers = (partition.seen_ms, hold.reserve_ms, hold.calls, overrun, int(was_posted))
        self._state.keep(partition, command.call.request_id, command.account, record)
        self._state.emit(
            partition,
            EventKind.SETTLED,
            command.account,
            command.reservation_id,
            numbers,
            facts=facts,
            rule=hold.rule,
        )
        if command.is_final:
            record.closed_at = partition.sequence
        return Settled(partition.sequence, overrun)

    @override
    async def release(self, commands: Sequence[ReleaseCommand], licence: Licence) -> list[ReleaseOutcome | DomainError]:
        return [self._release(command, licence) for command in commands]

    def _release(self, command: ReleaseCommand, licence: Licence) -> ReleaseOutcome:
        partition = self._state.enter(command.account, licence)
        if partition is None:
            return Fenced()
        key = (command.account, command.call.request_id)
        record = partition.operations.get(key) or Record(b"", command.call.holder)
        number = command.attempt or record.find(command.call.holder, command.call.call_index)
        number = number or len(record.attempts) + 1
        attempt = record.at(number)
        if attempt.state in {CallState.SETTLED, CallState.POSTED}:
            return AlreadySettled()
        if attempt.state is CallState.RELEASED:
            return Released(partition.sequence, was_unknown=False)
        account = partition.accounts[command.account]
        identifier = leg_id(command.call.request_id, number, command.for_account, command.leg)
        hold = account.holds.pop(identifier, None)
        attempt.holder, attempt.call_index = command.call.holder, command.call.call_index
        attempt.state, attempt.figure, attempt.tokens = CallState.RELEASED, 0, 0
        self._state.keep(partition, command.call.request_id, command.account, record)
        if hold is None:
            return Released(partition.sequence, was_unknown=True)
        account.adjust(hold, calls=-hold.calls, tokens=-hold.tokens, cost=-hold.cost)
        if hold.calls:
            record.is_counted = False
        if command.forgets and number == len(record.attempts):
            record.attempts.pop()
        self._state.emit(
            partition, EventKind.RELEASED, command.account, identifier, (partition.seen_ms, hold.reserve_ms)
        )
        return Released(partition.sequence, was_unknown=False, payer=int(hold.payer))

    @override
    async def extend(self, commands: Sequence[ExtendCommand], licence: Licence) -> list[ExtendOutcome | DomainError]:
        return [self._extend(command, licence) for command in commands]

    def _extend(self, command: ExtendCommand, licence: Licence) -> ExtendOutcome:
        partition = self._state.enter(command.account, licence)
        if partition is None:
            return Fenced()
        hold = partition.accounts[command.account].holds.get(command.reservation_id)
        if hold is None or hold.state is not CallState.HELD:
            return NotHeld()
        due_ms = max(hold.due_ms, partition.seen_ms + command.ttl_ms)
        if due_ms == hold.due_ms:
            return Extended(due_ms)
        hold.due_ms = due_ms
        record = partition.operations[command.account, hold.request_id]
        record.at(hold.attempt).figure = due_ms
        self._state.emit(
            partition, EventKind.EXTENDED, command.account, command.reservation_id, (partition.seen_ms, due_ms)
        )
        return Extended(due_ms)

    @override
    async def lookup(self, command: LookupCommand, licence: Licence) -> LookupOutcome:
        partition = self._state.enter(command.account, licence)
        if partition is None:
            return Fenced()
        record = partition.operations.get((command.account, command.request_id))
        if record is None:
            is_old = may_be_forgotten(partition.seen_ms, command.request_id)
            return NeedsHistory() if is_old else Found(OperationState.UNKNOWN)
        if record.body_hash and command.body_hash and record.body_hash != command.body_hash:
            return Reused()
        if record.closed_at:
            return Found(OperationState.FINAL, sequence=record.closed_at, attempts=len(record.attempts))
        for each in record.attempts:
            if each.state is CallState.HELD:
                return Found(OperationState.HELD, holder=record.holder, expire_ms=each.figure)
        last = record.attempts[-1].state if record.attempts else CallState.UNKNOWN
        return Found(_LAST_STATES[last])


def _id(command: ReserveCommand, attempt: int) -> str:
    facts = command.facts
    own = AccountKey(facts.for_account) if facts.leg == Leg.PLATFORM else command.account
    return leg_id(command.call.request_id, attempt, own, command.leg)
