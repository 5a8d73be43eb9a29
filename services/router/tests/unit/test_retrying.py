"""A call is tried again only when that can help and cannot cost."""

import asyncio
import random
from datetime import timedelta

import pytest

from router.domain.errors import (
    KeyRejectedError,
    ProviderError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnreachableError,
    ThrottledError,
)
from router.domain.refusals import LeaseEndedError
from router.domain.wire import WireRequest, WireResponse
from router.ports import Attempt
from router.resilience.retrying import RetryBudget, RetryingTransport
from services.router.tests.kit import ScriptedProvider, completion, failure, verdict
from testkit.fake_clock import FakeClock

REQUEST = WireRequest(method="POST", url="https://api.example.com/", headers={}, body=b"{}", auth=None)
BUDGET = RetryBudget(tries_max=3, delay_min=timedelta(seconds=1), delay_max=timedelta(seconds=5), jitter=0.5)


class Retrying:
    """A retrying transport on a script."""

    def __init__(self, *script: WireResponse | Exception) -> None:
        self.clock = FakeClock()
        self.provider = ScriptedProvider(self.clock)
        self.provider.script = list(script)
        draw = random.Random(1)
        self.transport = RetryingTransport(self.provider, budget=BUDGET, clock=self.clock, draw=draw)
        self.retried: list[ProviderError] = []

    def send(self, meaning: ProviderError, *, seconds: float = 60) -> "asyncio.Task[WireResponse]":
        """Send, with bad answers meaning `meaning`."""
        attempt = Attempt(
            provider="openai",
            secret=None,
            deadline=self.clock.monotonic() + seconds,
            before_first_byte=lambda: None,
            classify=lambda _: meaning,
            on_retry=self.retried.append,
        )
        return asyncio.create_task(self._send(attempt))

    async def _send(self, attempt: Attempt) -> WireResponse:
        return await self.transport.send(REQUEST, attempt)


def overloaded(retry_after: float | None = None) -> ProviderError:
    """Return that the provider is overloaded."""
    wish = None if retry_after is None else timedelta(seconds=retry_after)
    return ProviderOverloadedError(provider="openai", rule="r", retry_after=wish)


async def test_delays_grow_and_end_with_the_budget() -> None:
    """Three tries, about one and two seconds apart, and then the last answer is handed on."""
    retrying = Retrying(failure(503))
    call = retrying.send(overloaded())
    await retrying.clock.advance(timedelta(seconds=0.9))
    assert len(retrying.provider.requests) == 1
    await retrying.clock.advance(timedelta(seconds=0.7))
    assert len(retrying.provider.requests) == 2
    await retrying.clock.advance(timedelta(seconds=3.1))
    assert (await call).status == 503
    assert len(retrying.provider.requests) == 3
    assert len(retrying.retried) == 2


async def test_the_vendors_wish_is_never_shortened() -> None:
    """Retry-After is the least delay."""
    retrying = Retrying(failure(429), completion(verdict()))
    call = retrying.send(ThrottledError(provider="openai", rule="r", retry_after=timedelta(seconds=4)))
    await retrying.clock.advance(timedelta(seconds=3.9))
    assert len(retrying.provider.requests) == 1
    await retrying.clock.advance(timedelta(seconds=2.2))
    assert (await call).status == 200


@pytest.mark.parametrize(
    ("meaning", "seconds"),
    [
        (overloaded(6), 60),
        (overloaded(3), 2),
        (KeyRejectedError(provider="openai", rule="r"), 60),
    ],
)
async def test_no_retry_where_it_cannot_help(meaning: ProviderError, seconds: float) -> None:
    """A wish beyond the bound or the deadline, and what repeating cannot mend, go up at once."""
    retrying = Retrying(failure(500))
    call = retrying.send(meaning, seconds=seconds)
    await retrying.clock.advance(timedelta(0))
    assert (await call).status == 500
    assert len(retrying.provider.requests) == 1


async def test_what_may_have_been_billed_is_never_repeated() -> None:
    """A time-out after sending needs a hold of its own for another try."""
    retrying = Retrying(ProviderTimeoutError(provider="openai", rule="r"))
    with pytest.raises(ProviderTimeoutError):
        await retrying.send(overloaded())
    assert len(retrying.provider.requests) == 1


async def test_a_connection_that_was_never_made_is_tried_again() -> None:
    """Nothing was sent, so nothing can be paid twice."""
    retrying = Retrying(ProviderUnreachableError(provider="openai", rule="r"), completion(verdict()))
    call = retrying.send(overloaded())
    await retrying.clock.advance(timedelta(seconds=2))
    assert (await call).status == 200


async def test_a_key_that_is_taken_away_between_tries_leaves_the_failure_to_be_told() -> None:
    """A throttled key cools down, and so its lease ends: what the caller hears of is the throttling."""
    retrying = Retrying(failure(429), LeaseEndedError(rule="authority"))
    throttled = ThrottledError(provider="openai", rule="r", retry_after=timedelta(seconds=2))
    call = retrying.send(throttled)
    await retrying.clock.advance(timedelta(seconds=4))
    with pytest.raises(ThrottledError):
        await call


async def test_a_lease_that_ended_before_the_first_try_is_what_is_told() -> None:
    """Without a failure before it, another lease is what helps."""
    retrying = Retrying(LeaseEndedError(rule="authority"))
    with pytest.raises(LeaseEndedError):
        await retrying.send(overloaded())
