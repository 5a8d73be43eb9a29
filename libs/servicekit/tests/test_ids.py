import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.errors import InvalidArgumentError
from servicekit.ids import check_request_id, derived_uuid7, new_uuid7, uuid7_time

_NOW = datetime(2026, 1, 15, 12, 0, 0, 123_000, tzinfo=UTC)
# Hypothesis takes bounds without a zone and adds the zone itself.
_FIRST, _LAST = (datetime(year, 1, 1, tzinfo=UTC).replace(tzinfo=None) for year in (1970, 2500))
_TIMES = st.datetimes(min_value=_FIRST, max_value=_LAST, timezones=st.just(UTC))


@given(at=_TIMES)
def test_a_new_id_carries_its_time_to_the_millisecond(at: datetime) -> None:
    """The time inside is the time given, cut to milliseconds."""
    assert uuid7_time(new_uuid7(at)) == at - timedelta(microseconds=at.microsecond % 1000)


@given(at=_TIMES, parts=st.lists(st.binary(max_size=40), max_size=4))
def test_a_derived_id_is_canonical_and_repeatable(at: datetime, parts: list[bytes]) -> None:
    """The same time and parts give the same id, and it is a UUIDv7 of that time."""
    derived = derived_uuid7(at, *parts)
    assert derived == derived_uuid7(at, *parts)
    assert uuid7_time(derived) == uuid7_time(new_uuid7(at))


def test_a_time_beyond_the_calendar_is_no_time() -> None:
    """48 bits of milliseconds reach further than dates do; whoever reads the id catches one kind of error."""
    with pytest.raises(ValueError, match="no date"):
        uuid7_time("ffffffff-ffff-7000-8000-000000000001")


def test_parts_do_not_run_into_each_other() -> None:
    """Moving a byte from one part to the next is another id."""
    ids = {derived_uuid7(_NOW, *parts) for parts in ([b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abc", b""])}
    assert len(ids) == 4


def test_the_layout_is_the_one_that_is_documented() -> None:
    """An implementation from the documentation alone gives the same id."""
    digest = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in (b"queue", b"7"))).digest()
    milliseconds = int(_NOW.timestamp() * 1000)
    raw = bytearray(milliseconds.to_bytes(6, "big") + digest[:10])
    raw[6] = 0x70 | (raw[6] & 0x0F)
    raw[8] = 0x80 | (raw[8] & 0x3F)
    text = raw.hex()
    expected = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
    assert derived_uuid7(_NOW, b"queue", b"7") == expected


@pytest.mark.parametrize(
    ("offset", "reason"),
    [
        pytest.param(timedelta(0), None, id="now"),
        pytest.param(timedelta(days=-35), None, id="as old as may be"),
        pytest.param(timedelta(days=-35, milliseconds=-1), "REQUEST_ID_TOO_OLD", id="too old"),
        pytest.param(timedelta(minutes=5), None, id="as far ahead as may be"),
        pytest.param(timedelta(minutes=5, milliseconds=1), "REQUEST_ID_IN_FUTURE", id="from the future"),
    ],
)
def test_an_id_is_judged_by_its_own_time(offset: timedelta, reason: str | None) -> None:
    """Ids from 35 days ago to 5 minutes ahead are taken; the bounds are exact."""
    request_id = new_uuid7(_NOW + offset)
    if reason is None:
        check_request_id(request_id, _NOW)
        return
    with pytest.raises(InvalidArgumentError) as refused:
        check_request_id(request_id, _NOW, field="supersedes_request_id")
    violation = refused.value.violations[0]
    assert (violation.field, violation.reason) == ("supersedes_request_id", reason)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "not an id",
        pytest.param(new_uuid7(_NOW).upper(), id="upper case"),
        pytest.param(new_uuid7(_NOW).replace("-", ""), id="no hyphens"),
        pytest.param(new_uuid7(_NOW) + "\n", id="a line"),
        pytest.param(" " + new_uuid7(_NOW), id="a space"),
        pytest.param("{" + new_uuid7(_NOW) + "}", id="braces"),
        "f47ac10b-58cc-4372-a567-0e02b2c3d479",
        "019baf3e-0000-7000-0000-000000000000",
        "٠19baf3e-0000-7000-8000-000000000000",
        "ffffffff-ffff-7fff-bfff-ffffffffffff",
    ],
)
def test_what_is_no_canonical_uuid7_is_refused(value: str) -> None:
    """One spelling of an id only: otherwise one request could have two names."""
    with pytest.raises(InvalidArgumentError) as refused:
        check_request_id(value, _NOW)
    assert refused.value.violations[0].reason.startswith("REQUEST_ID_")
