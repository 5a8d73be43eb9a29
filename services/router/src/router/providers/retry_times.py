"""Reads when a vendor wants to be asked again, in every form that vendors use.

Only answers that may be repeated are read: some vendors send ``retry-after`` on success as well.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from router.providers.json_reading import number_of, object_of, objects_of, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from router.domain.wire import WireResponse
    from router.providers.json_reading import Json

RETRY_AFTER_MAX: Final = timedelta(days=31)
"""Longer wishes are cut: a month is the longest period by which any vendor counts."""

_RETRYABLE_STATUSES: Final = frozenset({402, 408, 409, 425, 429, 498, 529})
_SERVER_ERROR: Final = 500
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|d|h|m|s)")
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|d|h|m|s))+")
_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_IN_WORDS: Final = re.compile(r"[Tt]ry again in ((?:\d+(?:\.\d+)?(?:ms|d|h|m|s))+)")
_AFTER_SECONDS: Final = re.compile(r"(?:[Rr]etry after|[Tt]ry again in) (\d{1,9}(?:\.\d{1,9})?) seconds?\b")
_REGAIN_DATE: Final = re.compile(r"You will regain access on (\d{4}-\d{2}-\d{2}) at (\d{2}:\d{2}) UTC")
_EPOCH_FLOOR: Final = 1_000_000_000
"""Numbers from here on are moments since 1970, not spans; from a thousand times that on, in milliseconds."""


def retry_after(response: WireResponse, body: Json) -> timedelta | None:
    """Return the vendor's wish, cut to its bound; ``None`` where it has none or the answer may not be repeated."""
    if response.status not in _RETRYABLE_STATUSES and response.status < _SERVER_ERROR:
        return None
    return wish(response.headers, body, response.receive_time)


def wish(headers: Mapping[str, str], body: Json, now: datetime) -> timedelta | None:
    """Return the first wish found, whatever the status: headers, then the body's fields, then its words."""
    for found in _wishes(headers, body, now):
        if found is not None:
            return max(timedelta(0), min(found, RETRY_AFTER_MAX))
    return None


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """Return the vendor's explicit word on repeating the call."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def _wishes(headers: Mapping[str, str], body: Json, now: datetime) -> Iterator[timedelta | None]:
    yield _milliseconds(headers.get("retry-after-ms", ""))
    yield _seconds_or_date(headers.get("retry-after", ""), now)
    yield from _body_wishes(body, now)
    yield _spent_limit_reset(headers, now)


def _body_wishes(body: Json, now: datetime) -> Iterator[timedelta | None]:
    error = object_of(body, "error") or body
    for detail in objects_of(error, "details"):
        yield _duration(text_of(detail, "retryDelay"))
    metadata = object_of(error, "metadata")
    seconds = number_of(metadata, "retry_after_seconds")
    yield None if seconds is None else _span(seconds)
    # OpenRouter repeats the upstream's headers inside its error.
    upstream = {key.lower(): value for key, value in object_of(metadata, "headers").items() if isinstance(value, str)}
    yield _seconds_or_date(upstream.get("retry-after", ""), now)
    yield _moment_or_span(upstream.get("x-ratelimit-reset", ""), now)
    message = text_of(error, "message")
    words = _IN_WORDS.search(message)
    yield None if words is None else _duration(words[1])
    seconds_said = _AFTER_SECONDS.search(message)
    yield None if seconds_said is None else _span(float(seconds_said[1]))
    regain = _REGAIN_DATE.search(message)
    yield None if regain is None else _until(f"{regain[1]}T{regain[2]}:00Z", now)


def _spent_limit_reset(headers: Mapping[str, str], now: datetime) -> timedelta | None:
    """Return the reset of the limits that are spent: the header pairs ``…remaining…`` and ``…reset…``."""
    resets = []
    # A transport may hand names on as the server wrote them; only the look-up by name passes over their case.
    for name, value in ((name.lower(), value) for name, value in headers.items()):
        if "ratelimit" not in name or "remaining" not in name or value.strip() not in {"0", "0.0"}:
            continue
        reset = headers.get(name.replace("remaining", "reset"), "")
        resets.append(_moment_or_span(reset, now))
    known = [reset for reset in resets if reset is not None]
    return max(known) if known else _moment_or_span(headers.get("x-ratelimit-reset", ""), now)


def _milliseconds(text: str) -> timedelta | None:
    value = _number(text)
    return None if value is None else _span(value / 1000)


def _seconds_or_date(text: str, now: datetime) -> timedelta | None:
    value = _number(text)
    if value is not None:
        return _span(value)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return _duration(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now


def _moment_or_span(text: str, now: datetime) -> timedelta | None:
    value = _number(text)
    if value is None:
        return _duration(text) or _until(text, now)
    if value < _EPOCH_FLOOR:
        return _span(value)
    seconds = value / 1000 if value >= _EPOCH_FLOOR * 1000 else value
    return _span(seconds - now.timestamp())


def _duration(text: str) -> timedelta | None:
    """Read ``1m30.5s``, ``250ms``, ``7d``."""
    text = text.strip()
    if not _DURATION.fullmatch(text):
        return None
    return _span(sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(text)))


def _until(text: str, now: datetime) -> timedelta | None:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if re.fullmatch(r"-?\d{1,18}(?:\.\d{1,12})?", text) else None


def _span(seconds: float) -> timedelta:
    # A vendor's number may be larger than a timedelta can hold.
    return timedelta(seconds=max(-1.0, min(seconds, RETRY_AFTER_MAX.total_seconds())))
