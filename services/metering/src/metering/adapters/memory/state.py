"""What every part of the memory store shares: partitions, accounts, holds, records, and the outbox."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from metering.domain.accounts import PARTITIONS, AccountKey, partition_of
from metering.domain.enums import CallState, EventKind, Leg, Operation, Payer, ScopeKind, Unit
from metering.domain.ledger import LedgerFacts
from metering.domain.licences import Licence
from metering.domain.limits import Limit, LimitDenial, scope_text
from metering.domain.matching import applies, window_of
from metering.domain.outbox import OutboxRecord
from metering.domain.reservations import HOUR_MS, PriorOperation, id_hour
from metering.domain.windows import MINUTE_MS, Calendar, Span
from metering.ports import History

_DAY_MS: Final = 24 * HOUR_MS

Counter = tuple[int, int]


@dataclass
class Attempt:
    """One attempt of an operation."""

    holder: str = ""
    call_index: int = -1
    state: CallState = CallState.UNKNOWN
    # While held, when it expires; else the cost.
    figure: int = 0
    tokens: int = 0


@dataclass
class Record:
    """An operation record."""

    body_hash: bytes
    holder: str
    closed_at: int = 0
    is_counted: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    touched_ms: int = 0

    def at(self, attempt: int) -> Attempt:
        """Return an attempt, making room for it if it was never seen."""
        while len(self.attempts) < attempt:
            self.attempts.append(Attempt())
        return self.attempts[attempt - 1]

    def find(self, holder: str, call_index: int) -> int:
        """Return the newest attempt of a call; 0 if there is none."""
        for number in range(len(self.attempts), 0, -1):
            each = self.attempts[number - 1]
            if (each.holder, each.call_index) == (holder, call_index):
                return number
        return 0


@dataclass
class Hold:
    """A hold, or a suspense, and the counters that it stands in."""

    request_id: str
    attempt: int
    state: CallState
    reserve_ms: int
    due_ms: int
    output_tokens: int
    tokens: int
    cost: int
    calls: int
    payer: Payer
    operation: Operation
    agent_id: str
    owner_id: str
    rule: str
    leg: Leg = Leg.ACCOUNT
    counters: list[tuple[Counter, Unit]] = field(default_factory=list)

    def part(self, unit: Unit) -> int:
        """Return how much of a unit is held."""
        return {Unit.CALLS: self.calls, Unit.TOKENS: self.tokens, Unit.COST: self.cost}[unit]


@dataclass
class Account:
    """An account's limits, counters and holds."""

    version: int | None = None
    sequence: int = 0
    loading_until: int = 0
    calendar: Calendar | None = None
    plan: bytes = b""
    limits: list[Limit] = field(default_factory=list)
    counters: dict[Counter, int] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)

    def matching(self, hold: Hold, at_ms: int) -> list[tuple[Limit, Span]]:
        """Return the limits that bind a hold, each with its window around a time."""
        if self.calendar is None:
            return []
        found = []
        for kind in (ScopeKind.ACCOUNT, ScopeKind.OWNER, ScopeKind.AGENT):
            for limit in self.limits:
                if limit.scope.kind is kind and applies(
                    limit,
                    agent_id=hold.agent_id,
                    owner_id=hold.owner_id,
                    operation=hold.operation,
                    payer=hold.payer,
                ):
                    span = window_of(limit, at_ms, self.calendar)
                    if span.start * MINUTE_MS <= at_ms:
                        found.append((limit, span))
        return found

    def adjust(self, hold: Hold, *, calls: int, tokens: int, cost: int) -> None:
        """Add to the counters that a hold stands in; one that was removed stays removed."""
        change = {Unit.CALLS: calls, Unit.TOKENS: tokens, Unit.COST: cost}
        for counter, unit in hold.counters:
            if counter in self.counters:
                self.counters[counter] += change[unit]

    def join(self, hold: Hold, now_ms: int) -> None:
        """Stand a hold in every counter that applies, without adding to it."""
        hold.counters = []
        for limit, span in self.matching(hold, hold.reserve_ms):
            if span.end * MINUTE_MS + HOUR_MS >= now_ms:
                self.counters.setdefault((limit.slot, span.start), 0)
                hold.counters.append(((limit.slot, span.start), limit.unit))


@dataclass
class Partition:
    """A partition's accounts, records and outbox."""

    generation: int
    seen_ms: int = 0
    sequence: int = 0
    records: list[OutboxRecord] = field(default_factory=list)
    accounts: dict[AccountKey, Account] = field(default_factory=lambda: defaultdict(Account))
    operations: dict[tuple[AccountKey, str], Record] = field(default_factory=dict)


class MemoryState:
    """All partitions; time is told by whoever makes it."""

    def __init__(self, now_ms: int, *, generation: int = 1) -> None:
        """Start at a time."""
        self.now_ms = now_ms
        self.partitions = {number: Partition(generation) for number in range(PARTITIONS)}

    def enter(self, account: AccountKey, licence: Licence) -> Partition | None:
        """Return an account's partition with its time moved on, or nothing if its generation is another."""
        number = partition_of(account)
        partition = self.partitions[number]
        if partition.generation != licence.generations[number]:
            return None
        partition.seen_ms = max(partition.seen_ms, self.now_ms)
        return partition

    def record(
        self,
        partition: Partition,
        request_id: str,
        account: AccountKey,
        history: History | None,
        *,
        is_known: bool = False,
    ) -> Record | None:
        """Return an operation's record, a new one if there is none; nothing if only Postgres can tell."""
        found = partition.operations.get((account, request_id))
        if found is not None:
            return found
        if history is not None and history.operation is not None:
            return _of_history(history.operation)
        if history is None and not is_known and may_be_forgotten(partition.seen_ms, request_id):
            return None
        return Record(b"", "")

    def keep(self, partition: Partition, request_id: str, account: AccountKey, record: Record) -> None:
        """Keep an operation's record."""
        record.touched_ms = partition.seen_ms
        partition.operations[account, request_id] = record

    def emit(  # noqa: PLR0913 (a record's own parts)
        self,
        partition: Partition,
        kind: EventKind,
        account: AccountKey,
        reservation_id: str,
        numbers: tuple[int, ...],
        *,
        facts: LedgerFacts | None = None,
        rule: str = "",
    ) -> None:
        """Append a record to the outbox, and move the sequences on."""
        partition.sequence += 1
        partition.accounts[account].sequence = partition.sequence
        partition.records.append(
            OutboxRecord(
                partition_of(account),
                partition.generation,
                partition.sequence,
                kind,
                account,
                UUID(reservation_id),
                numbers,
                rule,
                facts,
            )
        )


def has_rolled(now_ms: int, calendar: Calendar) -> bool:
    """Tell whether a day or month of a calendar is over."""
    spans = (calendar.utc_day, calendar.utc_month, calendar.own_day, calendar.own_month)
    return any(now_ms >= span.end * MINUTE_MS for span in spans)


def next_midnight(at_ms: int) -> int:
    """Return the end of the UTC day around a time."""
    return (at_ms // _DAY_MS + 1) * _DAY_MS


def may_be_forgotten(now_ms: int, request_id: str) -> bool:
    """Tell whether an id is so old that its record may have been pruned."""
    return now_ms > (id_hour(request_id) + 2) * HOUR_MS


def denial(limit: Limit, span: Span, used: int, requested: int) -> LimitDenial:
    """Return why a limit did not let a call through."""
    return LimitDenial(
        limit_id=limit.limit_id,
        unit=limit.unit,
        window=limit.window,
        operation=int(limit.operation or 0),
        amount=limit.amount,
        used=used,
        requested=requested,
        reset_time=span.end_time,
        scope=scope_text(limit.scope, limit.account),
    )


def _of_history(prior: PriorOperation) -> Record:
    record = Record(prior.body_hash, "", closed_at=-1 if prior.is_final else 0, is_counted=bool(prior.attempts))
    for each in prior.attempts:
        attempt = record.at(each.attempt)
        attempt.holder, attempt.call_index, attempt.state = each.holder, each.call_index, each.state
        attempt.figure, attempt.tokens = each.cost_nano_usd, each.tokens
        record.holder = each.holder
    return record
