"""Remembers what Metering must still be told, until it is durable there: bounded, in memory, in order.

    settle ──▶ UNSENT ──sent──▶ APPLIED at a position ──watermark passed──▶ forgotten
                 ▲                     │
                 └──── not taken, or the partition's history is another one ◀──┘

A release is forgotten as soon as Metering has taken it: a hold that comes back from the dead only expires.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from byok.metering.v1.reservation_pb2 import ReleaseItem, SettleItem
from router.domain.refusals import RouterOverloadedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from byok.metering.v1.reservation_pb2 import OutboxPosition


@dataclass(slots=True)
class _Settlement:
    item: SettleItem
    is_on_its_way: bool = False
    partition: int = -1
    generation: int = -1
    sequence: int = -1


@dataclass(slots=True)
class _Release:
    item: ReleaseItem
    is_on_its_way: bool = True


class SettlementJournal:
    """The settlements and releases of one process that are not durable yet."""

    def __init__(self, entries_max: int) -> None:
        """Bound the journal; open holds have their room reserved in it."""
        self._entries_max = entries_max
        self._settlements: dict[str, _Settlement] = {}
        self._finals: dict[tuple[str, str], str] = {}
        self._releases: dict[tuple[str, int], _Release] = {}
        self.open_holds = 0

    @property
    def size(self) -> int:
        """Return how many entries are not durable."""
        return len(self._settlements) + len(self._releases)

    def ensure_room(self) -> None:
        """Check that one more hold could be settled.

        Raises:
            RouterOverloadedError: The journal is at its bound: Metering has been away for long.
        """
        if self.size + self.open_holds >= self._entries_max:
            raise RouterOverloadedError

    def add_settlement(self, item: SettleItem) -> None:
        """Remember a settlement that is about to be sent."""
        self._settlements[item.reservation_id] = _Settlement(item, is_on_its_way=True)
        if item.final:
            self._finals[item.call.request_id, item.attribution.agent_id] = item.reservation_id

    def add_release(self, item: ReleaseItem) -> None:
        """Remember a release that is about to be sent, until it is taken."""
        self._releases[item.call.request_id, item.call.call_index] = _Release(item)

    def final_settlement(self, request_id: str, agent_id: str) -> SettleItem | None:
        """Return the settlement that closes an operation, while it is not durable yet."""
        reservation_id = self._finals.get((request_id, agent_id))
        settlement = self._settlements.get(reservation_id) if reservation_id is not None else None
        return None if settlement is None else settlement.item

    def is_disposing_of(self, request_id: str, call_index: int) -> bool:
        """Return whether the hold of a call is on its way back."""
        return (request_id, call_index) in self._releases

    def is_settling(self, reservation_id: str) -> bool:
        """Return whether a hold has a settlement that is not durable yet."""
        return reservation_id in self._settlements

    def note_applied(self, reservation_id: str, position: OutboxPosition) -> None:
        """Note where a settlement stands; it is durable once the watermark has passed it."""
        settlement = self._settlements.get(reservation_id)
        if settlement is not None:
            settlement.is_on_its_way = False
            settlement.partition = position.partition
            settlement.generation = position.generation
            settlement.sequence = position.sequence

    def note_unsent(self, reservation_ids: Iterable[str]) -> None:
        """Note that settlements did not get through."""
        for reservation_id in reservation_ids:
            settlement = self._settlements.get(reservation_id)
            if settlement is not None:
                settlement.is_on_its_way = False
                settlement.partition = -1

    def note_release_unsent(self, item: ReleaseItem) -> None:
        """Note that a release did not get through."""
        release = self._releases.get((item.call.request_id, item.call.call_index))
        if release is not None:
            release.is_on_its_way = False

    def drop_settlement(self, reservation_id: str) -> None:
        """Forget a settlement that Metering will never take."""
        settlement = self._settlements.pop(reservation_id, None)
        if settlement is not None and settlement.item.final:
            self._finals.pop((settlement.item.call.request_id, settlement.item.attribution.agent_id), None)

    def drop_release(self, item: ReleaseItem) -> None:
        """Forget a release that was taken."""
        self._releases.pop((item.call.request_id, item.call.call_index), None)

    def note_watermarks(self, watermarks: Iterable[OutboxPosition]) -> None:
        """Forget what is durable, and mark for another try what stands in a history that is gone."""
        durable = {each.partition: (each.generation, each.sequence) for each in watermarks}
        for reservation_id, settlement in list(self._settlements.items()):
            reached = durable.get(settlement.partition)
            if reached is None:
                continue
            generation, sequence = reached
            if generation != settlement.generation:
                settlement.partition = -1
            elif sequence >= settlement.sequence:
                self.drop_settlement(reservation_id)

    def take_unsent_settlements(self) -> list[SettleItem]:
        """Return the settlements that must be sent again, as being on their way."""
        unsent = [each for each in self._settlements.values() if not each.is_on_its_way and each.partition < 0]
        for each in unsent:
            each.is_on_its_way = True
        return [each.item for each in unsent]

    def take_unsent_releases(self) -> list[ReleaseItem]:
        """Return the releases that must be sent again, as being on their way."""
        unsent = [each for each in self._releases.values() if not each.is_on_its_way]
        for each in unsent:
            each.is_on_its_way = True
        return [each.item for each in unsent]
