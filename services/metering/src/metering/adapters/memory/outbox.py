"""The outbox, and holds whose time is over, in memory."""

from collections.abc import Mapping, Sequence

from typing_extensions import override

from metering.adapters.memory.state import Hold, MemoryState, Partition, next_midnight
from metering.domain.enums import CallState, EventKind, Leg, Payer
from metering.domain.licences import Licence, Watermark
from metering.domain.outbox import OutboxRecord
from metering.domain.reservations import HOUR_MS, id_hour
from metering.ports import DueHold, HoldExpiry, Outbox


class MemoryOutbox(Outbox):
    """Records by partition."""

    def __init__(self, state: MemoryState) -> None:
        """Work on a state."""
        self._state = state

    @override
    async def read(self, positions: Sequence[Watermark], *, count: int) -> list[OutboxRecord]:
        found = []
        for each in positions:
            records = self._state.partitions[each.partition].records
            found += [record for record in records if _is_after(record, each)][:count]
        return found

    @override
    async def trim(self, positions: Sequence[Watermark]) -> None:
        for each in positions:
            partition = self._state.partitions[each.partition]
            partition.records = [record for record in partition.records if _is_after(record, each)]

    @override
    async def backlog(self, positions: Sequence[Watermark]) -> dict[int, int]:
        return {
            each.partition: self._state.partitions[each.partition].sequence - each.sequence
            for each in positions
            if self._state.partitions[each.partition].generation == each.generation
        }


class MemoryHoldExpiry(HoldExpiry):
    """Holds of all partitions."""

    def __init__(self, state: MemoryState) -> None:
        """Work on a state."""
        self._state = state

    @override
    async def due(self, licence: Licence, partitions: Sequence[int], *, count: int) -> list[DueHold]:
        due = []
        for number in partitions:
            partition = self._state.partitions[number]
            now_ms = max(partition.seen_ms, self._state.now_ms)
            holds = [
                (hold.due_ms, identifier, account)
                for account, known in partition.accounts.items()
                for identifier, hold in known.holds.items()
                if hold.due_ms <= now_ms
            ]
            due += [DueHold(identifier, account) for _, identifier, account in sorted(holds)[:count]]
        return due

    @override
    async def expire(self, holds: Sequence[DueHold], licence: Licence, *, follows: bool = False) -> list[Payer | None]:
        return [self._expire(each, licence, follows=follows) for each in holds]

    def _expire(self, due: DueHold, licence: Licence, *, follows: bool) -> Payer | None:
        partition = self._state.enter(due.account, licence)
        if partition is None:
            return None
        account = partition.accounts[due.account]
        hold = account.holds.get(due.reservation_id)
        if hold is None or (hold.due_ms > partition.seen_ms and not follows):
            return None
        if hold.state is CallState.HELD and hold.leg is Leg.PLATFORM and not follows:
            account.adjust(hold, calls=-hold.calls, tokens=-hold.tokens, cost=-hold.cost)
            del account.holds[due.reservation_id]
            self._mark(partition, due, hold, CallState.RELEASED)
            released = (partition.seen_ms, hold.reserve_ms)
            self._state.emit(partition, EventKind.RELEASED, due.account, due.reservation_id, released)
            return None
        was_held = hold.state is CallState.HELD
        if was_held:
            hold.state, hold.due_ms = CallState.SUSPENSE, next_midnight(hold.reserve_ms)
        else:
            del account.holds[due.reservation_id]
        self._mark(partition, due, hold, CallState.SUSPENSE if was_held else CallState.POSTED)
        numbers = (
            partition.seen_ms,
            hold.reserve_ms,
            hold.due_ms if was_held else 0,
            hold.output_tokens,
            hold.tokens,
            hold.cost,
            hold.calls,
        )
        kind = EventKind.SUSPENDED if was_held else EventKind.POSTED
        self._state.emit(partition, kind, due.account, due.reservation_id, numbers)
        return hold.payer

    @override
    async def prune(self, licence: Licence, partitions: Sequence[int], *, before_ms: Mapping[int, int]) -> int:
        pruned = 0
        for number in partitions:
            partition, before = self._state.partitions[number], before_ms.get(number, 0)
            for key, record in list(partition.operations.items()):
                ended = (id_hour(key[1]) + 1) * HOUR_MS
                if max(ended, record.touched_ms) + HOUR_MS < before:
                    del partition.operations[key]
                    pruned += 1
        return pruned

    def _mark(self, partition: Partition, due: DueHold, hold: Hold, state: CallState) -> None:
        record = partition.operations.get((due.account, hold.request_id))
        if record is not None:
            attempt = record.at(hold.attempt)
            is_released = state is CallState.RELEASED
            attempt.state = state
            attempt.figure, attempt.tokens = (0, 0) if is_released else (hold.cost, hold.tokens)
            self._state.keep(partition, hold.request_id, due.account, record)


def _is_after(record: OutboxRecord, position: Watermark) -> bool:
    return record.generation == position.generation and record.sequence > position.sequence
