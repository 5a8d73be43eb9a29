"""When a vendor wants to be asked again, in every form."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from router.domain.wire import WireResponse
from router.providers.retry_times import RETRY_AFTER_MAX, retry_after, should_retry

NOW = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
FORMS: list[tuple[dict[str, str], dict[str, Any], float]] = [
    ({"retry-after": "7"}, {}, 7),
    ({"retry-after": "1.5"}, {}, 1.5),
    ({"retry-after": "Wed, 25 Nov 2026 03:01:00 GMT"}, {}, 60),
    ({"retry-after": "Wed, 25 Nov 2026 02:00:00 GMT"}, {}, 0),
    ({"retry-after": "2m30s"}, {}, 150),
    ({"retry-after-ms": "250", "retry-after": "9"}, {}, 0.25),
    ({"retry-after": "-3"}, {}, 0),
    ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, {}, 360),
    ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, {}, 0.02),
    (
        {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "2026-11-25T03:00:30Z"},
        {},
        30,
    ),
    ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1795575630000"}, {}, 30),
    ({"x-ratelimit-reset": "1795575630"}, {}, 30),
    ({}, {"error": {"details": [{"@type": "x", "retryDelay": "34s"}]}}, 34),
    ({}, {"error": {"metadata": {"headers": {"X-RateLimit-Reset": "1795575630000"}}}}, 30),
    ({}, {"error": {"metadata": {"retry_after_seconds": 11}}}, 11),
    ({}, {"error": {"message": "Rate limit reached. Please try again in 7m12.5s. Visit"}}, 432.5),
    ({}, {"error": {"message": "You will regain access on 2026-11-26 at 00:00 UTC."}}, 75_600),
]


def _response(status: int, headers: dict[str, str], body: dict[str, Any]) -> WireResponse:
    return WireResponse(status=status, headers=headers, body=orjson.dumps(body), receive_time=NOW)


@pytest.mark.parametrize(("headers", "body", "seconds"), FORMS)
def test_every_form_is_read(headers: dict[str, str], body: dict[str, Any], seconds: float) -> None:
    """The first wish found counts; one that has passed is now."""
    assert retry_after(_response(429, headers, body), body) == timedelta(seconds=seconds)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 413, 422])
def test_answers_that_are_not_repeated_are_not_read(status: int) -> None:
    """Some vendors send the header on success as well."""
    assert retry_after(_response(status, {"retry-after": "7"}, {}), {}) is None


@pytest.mark.parametrize("status", [402, 408, 409, 429, 500, 503, 529])
def test_answers_that_may_be_repeated_are_read(status: int) -> None:
    """These and no others."""
    assert retry_after(_response(status, {"retry-after": "7"}, {}), {}) == timedelta(seconds=7)


@pytest.mark.parametrize("text", ["", "soon", "1e9", "nan", "99999999999999999999", "Mon, 99 Foo 2026", "1h2x"])
def test_nonsense_is_no_wish(text: str) -> None:
    """What cannot be read is passed over, and never raises."""
    assert retry_after(_response(429, {"retry-after": text}, {}), {}) is None


def test_a_wish_is_cut_to_its_bound() -> None:
    """A vendor cannot put a key to rest for a year."""
    assert retry_after(_response(429, {"retry-after": "99999999"}, {}), {}) == RETRY_AFTER_MAX


def test_limits_that_are_not_spent_say_nothing() -> None:
    """A reset time belongs to a wish only where its limit is spent."""
    headers = {"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "6m0s"}
    assert retry_after(_response(429, headers, {}), {}) is None


@pytest.mark.parametrize(("text", "word"), [("true", True), ("false", False), ("TRUE ", True), ("maybe", None)])
def test_the_vendors_word_on_repeating(text: str, *, word: bool | None) -> None:
    """``x-should-retry`` is taken as it stands."""
    assert should_retry({"x-should-retry": text}) is word
