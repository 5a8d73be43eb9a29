"""When limits start afresh.

Minutes and hours are the same for everyone and are computed where they are needed. Days and months depend on a time
zone; scripts cannot know one, so each account carries a *calendar*, the bounds of its current day and month in UTC and
in its own zone, and asks for the next one when the time has passed an end of it. Bounds are minutes since the epoch:
every zone in use is off by whole minutes.
"""

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from servicekit.errors import FieldViolation, InvalidArgumentError

MINUTE_MS: Final = 60_000
QUARTER: Final = timedelta(minutes=15)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Span(msgspec.Struct, frozen=True, array_like=True):
    """A time from `start` up to and without `end`, in minutes since the epoch."""

    start: int
    end: int

    @property
    def start_time(self) -> datetime:
        """Return its start."""
        return from_minutes(self.start)

    @property
    def end_time(self) -> datetime:
        """Return its end."""
        return from_minutes(self.end)


class Calendar(msgspec.Struct, frozen=True):
    """The current day and month, in UTC and in the account's own zone."""

    utc_day: Span
    utc_month: Span
    own_day: Span
    own_month: Span

    def flat(self) -> list[int]:
        """Return the bounds in the order in which scripts keep them."""
        spans = (self.utc_day, self.utc_month, self.own_day, self.own_month)
        return [bound for span in spans for bound in (span.start, span.end)]


def calendar_at(now: datetime, time_zone: str) -> Calendar:
    """Return the calendar that holds at a time."""
    zone = zone_of(time_zone)
    return Calendar(
        utc_day=day_of(now, UTC), utc_month=month_of(now, UTC), own_day=day_of(now, zone), own_month=month_of(now, zone)
    )


def day_of(now: datetime, zone: tzinfo) -> Span:
    """Return the day around a time; 23 or 25 hours long when the zone changes its clocks."""
    local = now.astimezone(zone)
    return Span(_midnight(local, zone, days=0), _midnight(local, zone, days=1))


def month_of(now: datetime, zone: tzinfo) -> Span:
    """Return the month around a time."""
    local = now.astimezone(zone)
    first = local.replace(day=1)
    # The 28th and four days is always in the next month.
    following = (first.replace(day=28) + timedelta(days=4)).replace(day=1)
    return Span(_midnight(first, zone, days=0), _midnight(following, zone, days=0))


@lru_cache(maxsize=1_024)
def zone_of(name: str) -> tzinfo:
    """Return the zone of an IANA name.

    Raises:
        InvalidArgumentError: There is none of that name.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidArgumentError(
            violations=[
                FieldViolation(
                    field="time_zone",
                    reason="TIME_ZONE_UNKNOWN",
                    description="must be an IANA time zone name, such as Europe/Berlin",
                )
            ]
        ) from None


def to_ms(at: datetime) -> int:
    """Return a time in milliseconds since the epoch, rounded down."""
    return (at - _EPOCH) // timedelta(milliseconds=1)


def from_ms(milliseconds: int) -> datetime:
    """Return the time of milliseconds since the epoch."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


def from_minutes(minutes: int) -> datetime:
    """Return the time of minutes since the epoch."""
    return _EPOCH + timedelta(minutes=minutes)


def quarter_of(at: datetime) -> datetime:
    """Return the start of the quarter hour around a time."""
    return at - (at - _EPOCH) % QUARTER


def _midnight(local: datetime, zone: tzinfo, *, days: int) -> int:
    day = (local.replace(tzinfo=None) + timedelta(days=days)).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    return (day.replace(tzinfo=zone).astimezone(UTC) - _EPOCH) // timedelta(minutes=1)
