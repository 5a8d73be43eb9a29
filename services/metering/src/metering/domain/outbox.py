"""The outbox: what scripts wrote, and the one transaction that each part of it becomes.

Records of a partition are folded in order of sequence. A hold that was opened and closed in the same part never reaches
Postgres; its settlement does.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from metering.domain.accounts import AccountKey
from metering.domain.enums import CallState, EntryKind, EventKind
from metering.domain.ledger import LedgerEntry, LedgerFacts, entry_id
from metering.domain.windows import from_ms


class OutboxRecord(msgspec.Struct, frozen=True, gc=False):
    """One record of a partition's outbox. `facts` are the script's own numbers, by kind of event."""

    partition: int
    generation: int
    sequence: int
    kind: EventKind
    account: AccountKey
    reservation_id: UUID
    numbers: tuple[int, ...]
    rule: str
    facts: LedgerFacts | None


class OpenHold(msgspec.Struct, frozen=True, kw_only=True):
    """A hold, or a suspense, as Postgres has it."""

    reservation_id: UUID
    account: AccountKey
    state: CallState
    calls: int
    tokens: int
    cost_nano_usd: int
    output_tokens: int
    reserve_ms: int
    due_ms: int
    facts: LedgerFacts


class Advance(msgspec.Struct, frozen=True):
    """One partition's step: refused as a whole unless everything it names is as it says."""

    partition: int
    generation: int
    fence: int
    from_sequence: int
    to_sequence: int
    seen_ms: int


class FlushBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What one transaction writes: derived from outbox records of several partitions."""

    entries: tuple[LedgerEntry, ...]
    opened: tuple[OpenHold, ...]
    # Reservation ids whose holds are over.
    closed: tuple[UUID, ...]
    # Holds that go on in suspense: id, due time (ms).
    suspended: tuple[tuple[UUID, int], ...]
    extended: tuple[tuple[UUID, int], ...]
    # Holds whose suspense is posted: the hold tells the entry's rest.
    posted: tuple[tuple[UUID, datetime], ...]
    answers: tuple[tuple[UUID, bytes, datetime], ...]
    # From and to which watermark each partition moves, and the highest time seen.
    advances: tuple[Advance, ...]


class FlushFold:
    """Folds records into one batch."""

    def __init__(self) -> None:
        """Start empty."""
        self._entries: list[LedgerEntry] = []
        self._open: dict[UUID, OpenHold] = {}
        self._closed: list[UUID] = []
        self._suspended: dict[UUID, int] = {}
        self._extended: dict[UUID, int] = {}
        self._posted: dict[UUID, datetime] = {}
        self._answers: list[tuple[UUID, bytes, datetime]] = []
        self._steps: Final = {
            EventKind.RESERVED: self._reserved,
            EventKind.SETTLED: self._settled,
            EventKind.RELEASED: self._released,
            EventKind.SUSPENDED: self._suspend,
            EventKind.POSTED: self._post,
            EventKind.EXTENDED: self._extend,
        }

    def add(self, record: OutboxRecord) -> None:
        """Fold one record in."""
        self._steps[record.kind](record)

    def batch(self, advances: Sequence[Advance]) -> FlushBatch:
        """Return what the records come to."""
        return FlushBatch(
            entries=tuple(self._entries),
            opened=tuple(self._open.values()),
            closed=tuple(self._closed),
            suspended=tuple(self._suspended.items()),
            extended=tuple(self._extended.items()),
            posted=tuple(self._posted.items()),
            answers=tuple(self._answers),
            advances=tuple(advances),
        )

    def _reserved(self, record: OutboxRecord) -> None:
        _, reserve_ms, due_ms, output_tokens, tokens, cost, calls = record.numbers
        self._open[record.reservation_id] = _hold(
            record, CallState.HELD, (reserve_ms, due_ms, output_tokens, tokens, cost, calls)
        )

    def _settled(self, record: OutboxRecord) -> None:
        now_ms, reserve_ms, calls, overrun, was_posted = record.numbers
        self._close(record.reservation_id)
        facts = _required(record)
        kind = EntryKind.ADJUSTMENT if was_posted else EntryKind.SETTLEMENT
        self._entries.append(
            LedgerEntry(
                entry_id=UUID(entry_id(str(record.reservation_id), kind)),
                kind=kind,
                reservation_id=record.reservation_id,
                account=record.account,
                facts=msgspec.structs.replace(facts, payer_rule=record.rule or facts.payer_rule, sealed_answer=b""),
                calls=0 if was_posted else calls,
                overrun_nano_usd=overrun,
                reserve_time=from_ms(reserve_ms),
                settle_time=from_ms(now_ms),
            )
        )
        if facts.sealed_answer:
            self._answers.append((record.reservation_id, facts.sealed_answer, from_ms(now_ms)))

    def _released(self, record: OutboxRecord) -> None:
        self._close(record.reservation_id)

    def _suspend(self, record: OutboxRecord) -> None:
        _, reserve_ms, due_ms, output_tokens, tokens, cost, calls = record.numbers
        hold = self._open.get(record.reservation_id)
        if record.facts is not None:
            numbers = (reserve_ms, due_ms, output_tokens, tokens, cost, calls)
            self._open[record.reservation_id] = _hold(record, CallState.SUSPENSE, numbers)
        elif hold is not None:
            self._open[record.reservation_id] = msgspec.structs.replace(hold, state=CallState.SUSPENSE, due_ms=due_ms)
        else:
            self._suspended[record.reservation_id] = due_ms

    def _post(self, record: OutboxRecord) -> None:
        posted_at = from_ms(record.numbers[0])
        hold = self._open.pop(record.reservation_id, None)
        self._suspended.pop(record.reservation_id, None)
        if hold is None:
            self._posted[record.reservation_id] = posted_at
        else:
            self._entries.append(suspense_entry(hold, posted_at))

    def _extend(self, record: OutboxRecord) -> None:
        due_ms = record.numbers[1]
        hold = self._open.get(record.reservation_id)
        if hold is not None:
            self._open[record.reservation_id] = msgspec.structs.replace(hold, due_ms=due_ms)
        else:
            self._extended[record.reservation_id] = due_ms

    def _close(self, reservation_id: UUID) -> None:
        # A hold that Postgres may have from an earlier part is deleted there too; one it never had costs nothing.
        self._open.pop(reservation_id, None)
        self._suspended.pop(reservation_id, None)
        self._extended.pop(reservation_id, None)
        self._closed.append(reservation_id)


def suspense_entry(hold: OpenHold, posted_at: datetime) -> LedgerEntry:
    """Return the entry that a suspense becomes when its day ends: its estimate."""
    estimated = msgspec.structs.replace(
        hold.facts,
        input_tokens=hold.tokens - hold.output_tokens,
        output_tokens=hold.output_tokens,
        cost_nano_usd=hold.cost_nano_usd,
        usage_source=3,
        sealed_answer=b"",
    )
    return LedgerEntry(
        entry_id=UUID(entry_id(str(hold.reservation_id), EntryKind.SUSPENSE)),
        kind=EntryKind.SUSPENSE,
        reservation_id=hold.reservation_id,
        account=hold.account,
        facts=estimated,
        calls=hold.calls,
        overrun_nano_usd=0,
        reserve_time=from_ms(hold.reserve_ms),
        settle_time=posted_at,
    )


def _hold(record: OutboxRecord, state: CallState, numbers: tuple[int, int, int, int, int, int]) -> OpenHold:
    reserve_ms, due_ms, output_tokens, tokens, cost, calls = numbers
    return OpenHold(
        reservation_id=record.reservation_id,
        account=record.account,
        state=state,
        calls=calls,
        tokens=tokens,
        cost_nano_usd=cost,
        output_tokens=output_tokens,
        reserve_ms=reserve_ms,
        due_ms=due_ms,
        facts=_required(record),
    )


def _required(record: OutboxRecord) -> LedgerFacts:
    if record.facts is None:
        message = f"outbox record {record.partition}/{record.generation}/{record.sequence} carries no facts"
        raise ValueError(message)
    return record.facts
