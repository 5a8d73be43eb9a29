"""The comparison of ledgers sees every way in which books can be wrong."""

from byok.metering.v1 import usage_service_pb2
from byok.router.v1 import operation_result_pb2, operation_service_pb2
from byok.type.v1 import usage_pb2
from testkit.simulator.ledger import LedgerEntry
from testkit.stack.load import Books, Outcome

_SETTLEMENT = usage_service_pb2.LEDGER_ENTRY_KIND_SETTLEMENT
_SUSPENSE = usage_service_pb2.LEDGER_ENTRY_KIND_SUSPENSE


def _charge(request_id: str, tokens: int = 10) -> LedgerEntry:
    return LedgerEntry(
        call_id=1, vendor="openai", route="chat", path="/", marker=request_id, input_tokens=tokens, output_tokens=5
    )


def _booking(
    request_id: str,
    tokens: int = 10,
    *,
    kind: usage_service_pb2.LedgerEntryKind.ValueType = _SETTLEMENT,
    reservation: str = "r1",
) -> usage_service_pb2.LedgerEntry:
    model = usage_pb2.ModelUsage(billable=usage_pb2.TokenCounts(input_tokens=tokens, output_tokens=5))
    return usage_service_pb2.LedgerEntry(
        request_id=request_id, reservation_id=reservation, kind=kind, usage=usage_pb2.Usage(models=[model])
    )


def _told(request_id: str, settlement: operation_result_pb2.Settlement.ValueType) -> Outcome:
    receipt = operation_result_pb2.OperationReceipt(settlement=settlement)
    return Outcome(request_id=request_id, response=operation_service_pb2.EvaluateGuardrailResponse(receipt=receipt))


def test_books_that_agree_have_no_problems() -> None:
    """One charge, one booking, and the caller was told so."""
    books = Books.read([_charge("a")], [_booking("a")], ["a"])
    assert books.problems([_told("a", operation_result_pb2.SETTLEMENT_SETTLED)]) == []
    assert books.unbooked() == {}


def test_a_lost_settlement_is_seen() -> None:
    """A charge without a booking, and a promise without one."""
    books = Books.read([_charge("a")], [], ["a"])
    assert books.unbooked() == {"a": 1}
    assert books.problems([_told("a", operation_result_pb2.SETTLEMENT_SETTLED)])
    assert books.problems([_told("a", operation_result_pb2.SETTLEMENT_PENDING)]) == []


def test_a_charge_in_suspense_is_booked() -> None:
    """What died in flight is kept at its estimate."""
    books = Books.read([_charge("a")], [_booking("a", 99, kind=_SUSPENSE)], ["a"])
    assert books.unbooked() == {}
    assert books.problems([]) == []


def test_double_bookings_are_seen() -> None:
    """The same reservation twice, two reservations for one charge, and a booking with other figures."""
    twice = Books.read([_charge("a")], [_booking("a"), _booking("a")], ["a"])
    assert len(twice.problems([])) == 2
    two = Books.read([_charge("a")], [_booking("a"), _booking("a", reservation="r2")], ["a"])
    assert len(two.problems([])) == 1
    other = Books.read([_charge("a")], [_booking("a", 11)], ["a"])
    assert len(other.problems([])) == 1


def test_two_charges_of_one_request_need_two_bookings() -> None:
    """A call that was paid again after a crash is booked again."""
    books = Books.read([_charge("a"), _charge("a")], [_booking("a")], ["a"])
    assert books.unbooked() == {"a": 1}
    both = [_booking("a"), _booking("a", reservation="r2")]
    assert Books.read([_charge("a"), _charge("a")], both, ["a"]).unbooked() == {}
