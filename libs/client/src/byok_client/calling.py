"""How one call is made: with a deadline, and again only where that is safe.

Only UNAVAILABLE is tried again: the service, or gRPC itself, says that nothing was done. Every try carries the same
request id, so that also a try whose answer was lost is not paid twice. A time-out is not tried again: the caller's time
is over.
"""

import asyncio
import random
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from byok.router.v1.operation_result_pb2 import OperationFailure
from servicekit.calls import call_deadline
from servicekit.clock import Clock
from servicekit.errors import DeadlineExceededError
from servicekit.wire import RemoteError, error_from_rpc

Request_contra = TypeVar("Request_contra", bound=Message, contravariant=True)
Response_co = TypeVar("Response_co", bound=Message, covariant=True)
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

# A try that could last no longer than this would fail for want of time; better keep the reason of the last one.
_TRY_MIN: Final = timedelta(milliseconds=20)
_TIMEOUT_MIN_S: Final = 0.001


class UnaryMethod(Protocol[Request_contra, Response_co]):
    """A unary method of a stub."""

    def __call__(self, request: Request_contra, /, *, timeout: float | None = None) -> Awaitable[Response_co]:
        """Make the call."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """How often and how long a call is tried.

    Attributes:
        attempts_max: Tries in all, 1 for none but the first.
        backoff_min: Wait before the second try, doubled for each further one, and drawn at random below that.
        backoff_max: The longest wait.
    """

    attempts_max: int = 4
    backoff_min: timedelta = timedelta(milliseconds=50)
    backoff_max: timedelta = timedelta(seconds=2)


class Calling:
    """Makes unary calls within a deadline and a retry budget."""

    def __init__(self, *, budget: RetryBudget, clock: Clock) -> None:
        """Use `budget` for every call."""
        self._budget = budget
        self._clock = clock

    async def __call__(
        self, method: UnaryMethod[Request, Response], request: Request, *, deadline: timedelta
    ) -> Response:
        """Return the answer to `request`.

        Raises:
            RemoteError: What the last try ended with.
        """
        ends = self._clock.monotonic() + deadline.total_seconds()
        attempt = 1
        while True:
            try:
                return await method(request, timeout=_timeout(ends - self._clock.monotonic()))
            except asyncio.CancelledError:
                if _is_cancelled():
                    raise
                # gRPC says so when it is the channel that was closed; the caller goes on and must be told.
                failure = RemoteError("The connection was closed.", code=grpc.StatusCode.CANCELLED)
            except Exception as error:  # noqa: BLE001 (whatever it is, the caller has no answer and must hold)
                failure = _failure(error)
            wait = self._wait(failure, attempt)
            left = ends - self._clock.monotonic()
            if wait is None or wait + _TRY_MIN.total_seconds() > left:
                raise failure
            await self._clock.sleep(timedelta(seconds=wait))
            attempt += 1

    def _wait(self, failure: RemoteError, attempt: int) -> float | None:
        """Return how long to wait before the next try, or None when there is none."""
        if failure.code is not grpc.StatusCode.UNAVAILABLE or attempt >= self._budget.attempts_max:
            return None
        told = failure.detail(OperationFailure)
        if told is not None and not told.retryable:
            return None
        ceiling = min(
            self._budget.backoff_min.total_seconds() * 2 ** (attempt - 1), self._budget.backoff_max.total_seconds()
        )
        asked = failure.retry_after.total_seconds() if failure.retry_after is not None else 0.0
        # Full jitter: callers that failed together must not come back together.
        return asked + random.uniform(0, ceiling)  # noqa: S311 (no secret depends on it)


def _timeout(left: float) -> float:
    """Return how long a try may take: what is left, and no longer than the call that is being served here, if any."""
    return call_deadline(timedelta(seconds=max(left, _TIMEOUT_MIN_S)))


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _failure(error: Exception) -> RemoteError:
    if isinstance(error, grpc.aio.AioRpcError):
        return error_from_rpc(error)
    if isinstance(error, DeadlineExceededError):
        return RemoteError(error.message, code=grpc.StatusCode.DEADLINE_EXCEEDED, reason="DEADLINE_EXCEEDED")
    # Its text may quote the request.
    return RemoteError(f"The call could not be made: {type(error).__name__}.", code=grpc.StatusCode.UNKNOWN)
