"""Items of admission: what is refused before it can reach a store, and by which field."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from byok.metering.v1 import reservation_pb2
from byok.type.v1 import account_pb2
from metering.api.admission_mapping import Moment, extend_command, release_command, reserve_request, settle_command
from metering.domain.ledger import reservation_id
from metering.domain.money import AMOUNT_MAX
from servicekit.errors import InvalidArgumentError
from servicekit.ids import new_uuid7
from services.metering.tests.served import account_of, reserve_item, settle_item

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
MOMENT = Moment.of(NOW)
HOLDER = new_uuid7(NOW)


def a_reserve() -> reservation_pb2.ReserveItem:
    """Return an item that is good."""
    item = reserve_item("owner-1", "agent-1", HOLDER)
    item.call.request_id = new_uuid7(NOW)
    return item


def a_settle() -> reservation_pb2.SettleItem:
    """Return a settlement that is good."""
    item = a_reserve()
    reserved = reservation_id(item.call.request_id, 1, reserve_request(item, MOMENT).command.account)
    grant = reservation_pb2.Grant(reservation_id=reserved, attempt=1, granted_output_tokens=1_000)
    return settle_item(item, grant)


def set_field(path: str, value: object) -> Callable[[object], None]:
    """Return what sets a nested field."""
    *parents, last = path.split(".")

    def change(message: object) -> None:
        for name in parents:
            message = getattr(message, name)
        setattr(message, last, value)

    return change


RESERVE_FAULTS = [
    ("call.request_id", "", "call.request_id"),
    ("call.request_id", "6BA7B810-9DAD-11D1-80B4-00C04FD430C8", "call.request_id"),
    pytest.param("call.request_id", new_uuid7(datetime(2025, 12, 1, tzinfo=UTC)), "call.request_id", id="an old id"),
    pytest.param(
        "call.request_id", new_uuid7(datetime(2026, 1, 15, 12, 6, tzinfo=UTC)), "call.request_id", id="an id to come"
    ),
    ("call.holder", "router-1", "call.holder"),
    ("call.call_index", -1, "call.call_index"),
    ("attribution.agent_id", "", "attribution.agent_id"),
    ("attribution.agent_id", "a b", "attribution.agent_id"),
    ("attribution.owner_id", "", "attribution.owner_id"),
    ("attribution.operation", 99, "attribution.operation"),
    ("attribution.payer", 0, "attribution.payer"),
    ("attribution.model", "m" * 257, "attribution"),
    ("attribution.key_id", "k\0", "attribution"),
    ("estimate.input_tokens", -1, "estimate.input_tokens"),
    ("estimate.output_tokens_min", 1_001, "estimate.output_tokens_min"),
    ("estimate.output_tokens_max", 2 * 10**9, "estimate.output_tokens_max"),
    ("estimate.fixed_cost_nano_usd", AMOUNT_MAX, "estimate"),
    ("estimate.output_nano_usd_per_mtok", -1, "estimate.output_nano_usd_per_mtok"),
    ("body_hash", b"short", "body_hash"),
]
SETTLE_FAULTS = [
    pytest.param("reservation_id", new_uuid7(NOW), "reservation_id", id="another id"),
    ("attempt", 2, "reservation_id"),
    ("attempt", 129, "reservation_id"),
    ("usage.cost_nano_usd", -1, "usage.cost_nano_usd"),
    ("usage.cost_nano_usd", AMOUNT_MAX + 1, "usage.cost_nano_usd"),
    ("usage.source", 70_000, "usage.source"),
    ("usage.price_version", "v\0", "usage.price_version"),
    ("sealed_answer", b"x" * (16 * 1024 + 1), "sealed_answer"),
    ("final", False, "sealed_answer"),
    ("granted_output_tokens", 10**15, "granted_output_tokens"),
]


@pytest.mark.parametrize(("path", "value", "field"), RESERVE_FAULTS)
def test_a_reserve_is_refused_by_the_field_that_is_wrong(path: str, value: object, field: str) -> None:
    """Each field is named, and nothing else is."""
    item = a_reserve()
    reserve_request(item, MOMENT)
    set_field(path, value)(item)
    with pytest.raises(InvalidArgumentError) as refused:
        reserve_request(item, MOMENT)
    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize(("path", "value", "field"), SETTLE_FAULTS)
def test_a_settlement_is_refused_by_the_field_that_is_wrong(path: str, value: object, field: str) -> None:
    """What Postgres could not take never comes into the outbox."""
    item = a_settle()
    settle_command(item, MOMENT)
    set_field(path, value)(item)
    with pytest.raises(InvalidArgumentError) as refused:
        settle_command(item, MOMENT)
    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize("seconds", [-(10**15), 0, 10**12])
def test_a_reserve_time_that_no_ledger_has_is_refused(seconds: int) -> None:
    """It would be the entry's window."""
    item = a_settle()
    item.reserve_time.CopyFrom(Timestamp(seconds=seconds))
    with pytest.raises(InvalidArgumentError):
        settle_command(item, MOMENT)


@pytest.mark.parametrize("ttl", [Duration(seconds=-1), Duration(seconds=901)])
def test_a_hold_lasts_at_most_fifteen_minutes(ttl: Duration) -> None:
    """Unset, it is two minutes."""
    item = a_reserve()
    item.hold_ttl.Clear()
    assert reserve_request(item, MOMENT).command.ttl_ms == 120_000
    item.hold_ttl.CopyFrom(ttl)
    with pytest.raises(InvalidArgumentError):
        reserve_request(item, MOMENT)


def test_the_platform_needs_a_cause_to_pay() -> None:
    """And its own work needs no agent."""
    item = a_reserve()
    item.attribution.payer = account_pb2.PAYER_PLATFORM
    with pytest.raises(InvalidArgumentError):
        reserve_request(item, MOMENT)
    item.attribution.platform_cause = reservation_pb2.PLATFORM_CAUSE_OPERATION_IS_PLATFORMS
    item.attribution.account.CopyFrom(account_pb2.Account(platform=True))
    item.attribution.agent_id = item.attribution.owner_id = ""
    assert reserve_request(item, MOMENT).cause is not None


def test_releases_and_extensions_are_checked_too() -> None:
    """A release may not know its reservation; an extension must."""
    call = a_reserve().call
    release = reservation_pb2.ReleaseItem(call=call, account=account_of("owner-1"))
    assert release_command(release, MOMENT).attempt == 0
    extension = reservation_pb2.ExtendItem(call=call, account=account_of("owner-1"))
    with pytest.raises(InvalidArgumentError):
        extend_command(extension, MOMENT)
    with pytest.raises(InvalidArgumentError):
        release_command(reservation_pb2.ReleaseItem(call=call), MOMENT)
