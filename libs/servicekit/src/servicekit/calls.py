"""The call that is being served: its method, request id and deadline, carried by a context variable. Knows no gRPC."""

import asyncio
import contextvars
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from servicekit.errors import DeadlineExceededError

CALL_MARGIN: Final = timedelta(milliseconds=10)


@dataclass(frozen=True, slots=True)
class InboundCall:
    """A call that is being served. `deadline` is in the loop's time; streams may have none."""

    method: str
    request_id: str
    deadline: float | None


CURRENT_CALL: Final[contextvars.ContextVar[InboundCall | None]] = contextvars.ContextVar(
    "servicekit_call", default=None
)


def current_call() -> InboundCall | None:
    """Return the call that is being served, or None outside of one."""
    return CURRENT_CALL.get()


def call_deadline(at_most: timedelta, *, margin: timedelta = CALL_MARGIN) -> float:
    """Return the seconds that an outbound call may take: `at_most`, or less when less is left of the inbound call.

    `margin` is what this process keeps to turn the outcome into its own answer; without it a caller would see only its
    own time-out.

    Raises:
        DeadlineExceededError: Nothing is left.
    """
    limit = at_most.total_seconds()
    call = CURRENT_CALL.get()
    if call is None or call.deadline is None:
        return limit
    left = call.deadline - asyncio.get_running_loop().time() - margin.total_seconds()
    if left <= 0:
        raise DeadlineExceededError("No time is left for another call. Give the call a longer deadline.")
    return min(limit, left)
