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
from router.domain.refusals import LeaseEndedError
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
        before: ProviderError | None = None
        for tried in range(1, self._budget.tries_max + 1):
            try:
                answer = await self._try(request, attempt)
            except LeaseEndedError:
                if before is None:
                    raise
                # A throttled key cools down, which ends its leases: the caller must hear of the throttling.
                raise before from None
            delay = None if answer.failure is None else self._delay(answer.failure, tried, attempt)
            if answer.failure is None or delay is None:
                return answer.response_or_raise()
            before = answer.failure
            attempt.on_retry(before)
            await self._clock.sleep(delay)
        raise AssertionError  # The last try never gets a delay.

    async def _try(self, request: WireRequest, attempt: Attempt) -> "_Answer":
        try:
            response = await self._inner.send(request, attempt)
        except ProviderError as error:
            return _Answer(response=None, failure=error)
        is_failed = response.status >= _FAILED_FROM
        return _Answer(response=response, failure=attempt.classify(response) if is_failed else None)

    def _delay(self, failure: ProviderError, tried: int, attempt: Attempt) -> timedelta | None:
        """Return how long to wait before another try; ``None`` when there must be none."""
        budget = self._budget
        if tried == budget.tries_max or failure.may_have_been_billed or not failure.retryable:
            return None
        delay = failure.retry_after if failure.retry_after is not None else budget.delay_min * 2 ** (tried - 1)
        if delay > budget.delay_max:
            return None
        delay += delay * (self._draw.random() * budget.jitter)
        if self._clock.monotonic() + delay.total_seconds() >= attempt.deadline:
            return None
        return delay


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What one try brought."""

    response: WireResponse | None
    failure: ProviderError | None

    def response_or_raise(self) -> WireResponse:
        if self.response is not None:
            return self.response
        assert self.failure is not None  # noqa: S101 (a try brings one or the other)
        raise self.failure
