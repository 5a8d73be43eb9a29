"""Tries a provider call again when the vendor says that it may help and nothing can have been billed.

The vendor's delay is honoured and never shortened: when it does not fit, the failure goes up with it, so that the next
candidate or the caller waits instead. What may have been billed is never repeated here, because a repetition needs a
hold of its own.
"""

import random
from dataclasses import dataclass
from datetime import timedelta

from typing_extensions import override

from router.domain.errors import ProviderError
from router.domain.wire import WireRequest, WireResponse
from router.ports import Attempt, ProviderTransport
from servicekit.clock import Clock

_FAILED_FROM = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """How often and how long one call may be tried again.

    Attributes:
        tries_max: Tries of one call, the first included.
        delay_min: The first delay where the vendor names none; it doubles with each try.
        delay_max: The longest delay: a vendor that asks for more is not waited for.
        jitter: The share of a delay that is drawn at random and added.
    """

    tries_max: int
    delay_min: timedelta
    delay_max: timedelta
    jitter: float


class RetryingTransport(ProviderTransport):
    """A transport with a bounded number of further tries."""

    def __init__(self, inner: ProviderTransport, *, budget: RetryBudget, clock: Clock, draw: random.Random) -> None:
        """Wrap `inner`; `draw` spreads the delays of many callers."""
        self._inner = inner
        self._budget = budget
        self._clock = clock
        self._draw = draw

    @override
    async def send(self, request: WireRequest, attempt: Attempt, /) -> WireResponse:
        for tried in range(1, self._budget.tries_max):
            failure: ProviderError
            try:
                response = await self._inner.send(request, attempt)
                if response.status < _FAILED_FROM:
                    return response
                failure = attempt.classify(response)
                delay = self._delay(failure, tried, attempt)
                if delay is None:
                    return response
            except ProviderError as error:
                failure = error
                delay = self._delay(failure, tried, attempt)
                if delay is None:
                    raise
            attempt.on_retry(failure)
            await self._clock.sleep(delay)
        return await self._inner.send(request, attempt)

    def _delay(self, failure: ProviderError, tried: int, attempt: Attempt) -> timedelta | None:
        """Return how long to wait before another try; ``None`` when there must be none."""
        if failure.may_have_been_billed or not failure.retryable:
            return None
        budget = self._budget
        delay = failure.retry_after if failure.retry_after is not None else budget.delay_min * 2 ** (tried - 1)
        if delay > budget.delay_max:
            return None
        delay += delay * (self._draw.random() * budget.jitter)
        if self._clock.monotonic() + delay.total_seconds() >= attempt.deadline:
            return None
        return delay
