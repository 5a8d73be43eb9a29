"""The journal forgets nothing that is not durable, and lets no more in than it could hold."""

import pytest

from byok.metering.v1.reservation_pb2 import CallIdentity, OutboxPosition, ReleaseItem, SettleItem
from router.adapters.settlement_journal import SettlementJournal
from router.domain.refusals import RouterOverloadedError


def settlement(name: str) -> SettleItem:
    """Return a settlement of that reservation id."""
    return SettleItem(reservation_id=name)


def position(sequence: int, *, generation: int = 1, partition: int = 7) -> OutboxPosition:
    """Return a place in a partition's outbox."""
    return OutboxPosition(partition=partition, generation=generation, sequence=sequence)


def test_a_settlement_stays_until_the_watermark_has_passed_it() -> None:
    """Applied is not durable; another partition's watermark says nothing."""
    journal = SettlementJournal(10)
    journal.add_settlement(settlement("a"))
    journal.note_watermarks([position(99)])
    journal.note_applied("a", position(5))
    for mark in (position(4), position(9, partition=8)):
        journal.note_watermarks([mark])
        assert journal.size == 1
    assert journal.take_unsent_settlements() == []
    journal.note_watermarks([position(5)])
    assert journal.size == 0


def test_a_settlement_of_a_lost_history_is_sent_again() -> None:
    """A partition that was rebuilt has another generation, in which the settlement may be missing."""
    journal = SettlementJournal(10)
    journal.add_settlement(settlement("a"))
    journal.note_applied("a", position(5, generation=1))
    journal.note_watermarks([position(900, generation=2)])
    assert [item.reservation_id for item in journal.take_unsent_settlements()] == ["a"]
    journal.note_applied("a", position(3, generation=2))
    journal.note_watermarks([position(3, generation=2)])
    assert journal.size == 0


def test_what_did_not_get_through_is_sent_again_once_at_a_time() -> None:
    """While a settlement is on its way, it is not sent a second time."""
    journal = SettlementJournal(10)
    journal.add_settlement(settlement("a"))
    assert journal.take_unsent_settlements() == []
    journal.note_unsent(["a", "unknown"])
    assert len(journal.take_unsent_settlements()) == 1
    assert journal.take_unsent_settlements() == []


def test_an_open_hold_has_its_room_reserved() -> None:
    """At the bound no new hold is made, so that every settlement finds room."""
    journal = SettlementJournal(3)
    journal.ensure_room()
    journal.open_holds = 2
    journal.add_settlement(settlement("a"))
    with pytest.raises(RouterOverloadedError):
        journal.ensure_room()
    journal.drop_settlement("a")
    journal.ensure_room()


def test_a_release_stays_until_it_is_taken() -> None:
    """A hold that was given up must not be granted later."""
    journal = SettlementJournal(10)
    item = ReleaseItem(call=CallIdentity(request_id="r", call_index=1))
    journal.add_release(item)
    assert journal.take_unsent_releases() == []
    journal.note_release_unsent(item)
    assert journal.take_unsent_releases() == [item]
    assert journal.take_unsent_releases() == []
    assert journal.size == 1
    journal.drop_release(item)
    journal.drop_release(item)
    assert journal.size == 0
