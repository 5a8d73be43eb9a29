"""Days and months, in every zone that there is."""

from datetime import UTC, datetime, timedelta
from zoneinfo import available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.domain.windows import calendar_at, day_of, from_ms, month_of, quarter_of, to_ms, zone_of
from servicekit.errors import InvalidArgumentError

ZONES = sorted(available_timezones())
TIMES = st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 (given a zone)


@given(at=TIMES, zone=st.sampled_from(ZONES))
def test_a_day_holds_its_time_and_ends_where_the_next_begins(at: datetime, zone: str) -> None:
    """Days follow each other without a gap, in zones with and without daylight saving."""
    day = day_of(at, zone_of(zone))
    assert day.start_time <= at < day.end_time
    assert day_of(day.end_time, zone_of(zone)).start == day.end
    assert timedelta(hours=20) <= day.end_time - day.start_time <= timedelta(hours=48)


@given(at=TIMES, zone=st.sampled_from(ZONES))
def test_a_month_holds_its_time_and_ends_where_the_next_begins(at: datetime, zone: str) -> None:
    """Months follow each other without a gap."""
    month = month_of(at, zone_of(zone))
    assert month.start_time <= at < month.end_time
    assert month_of(month.end_time, zone_of(zone)).start == month.end


@pytest.mark.parametrize(
    ("zone", "start", "hours"),
    [
        ("UTC", "2026-03-29T00:00", 24),
        ("Europe/Berlin", "2026-03-28T23:00", 23),
        ("Asia/Tokyo", "2026-03-28T15:00", 24),
        ("Asia/Kathmandu", "2026-03-28T18:15", 24),
        ("America/St_Johns", "2026-03-29T02:30", 24),
    ],
)
def test_the_day_of_a_time_in_known_zones(zone: str, start: str, hours: int) -> None:
    """Part-hour zones start their day at part of an hour; a change of clocks makes a day shorter."""
    day = day_of(datetime(2026, 3, 29, 12, tzinfo=UTC), zone_of(zone))
    assert day.start_time == datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert day.end_time - day.start_time == timedelta(hours=hours)


def test_a_calendar_has_utc_and_the_accounts_own() -> None:
    """The bounds are in the order in which scripts keep them."""
    calendar = calendar_at(datetime(2026, 1, 31, 20, tzinfo=UTC), "Asia/Tokyo")
    assert calendar.own_month.start_time == datetime(2026, 1, 31, 15, tzinfo=UTC)
    assert calendar.flat() == [
        bound
        for span in (calendar.utc_day, calendar.utc_month, calendar.own_day, calendar.own_month)
        for bound in (span.start, span.end)
    ]


def test_an_unknown_zone_is_refused_by_name() -> None:
    """The field and the remedy are named."""
    with pytest.raises(InvalidArgumentError) as refused:
        zone_of("Mars/Olympus")
    assert refused.value.violations[0].field == "time_zone"


@given(at=TIMES)
def test_quarters_and_milliseconds(at: datetime) -> None:
    """A quarter starts on a multiple of fifteen minutes; milliseconds come back."""
    quarter = quarter_of(at)
    assert quarter <= at < quarter + timedelta(minutes=15)
    assert quarter.minute % 15 == quarter.second == quarter.microsecond == 0
    assert from_ms(to_ms(at)) == at.replace(microsecond=at.microsecond // 1_000 * 1_000)
