"""Lets a repeated request join the attempt in flight on the same replica, so that one operation is worked on once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from router.domain.refusals import InProgressError, RequestIdReusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from router.usecases.activity import Activity

Answer = TypeVar("Answer")

_RETRY_AFTER_ABANDONED: Final = timedelta(seconds=1)


class _InFlight(Generic[Answer]):
    __slots__ = ("body_hash", "task", "waiters")

    def __init__(self, body_hash: bytes, task: asyncio.Task[Answer]) -> None:
        self.body_hash = body_hash
        self.task = task
        self.waiters = 0


class InFlightOperations(Generic[Answer]):
    """The operations of one kind that are under way in this process, by request id and agent."""

    def __init__(self, activity: Activity) -> None:
        """Count what is under way in `activity`."""
        self._activity = activity
        self._in_flight: dict[tuple[str, str], _InFlight[Answer]] = {}

    async def run(
        self, identity: tuple[str, str], work: Callable[[], Coroutine[None, None, Answer]], *, body_hash: bytes
    ) -> Answer:
        """Do the work, or wait for the same work that is being done.

        The work goes on as long as anybody waits for it; when the last waiter leaves, it is cancelled, and with it the
        call to the provider.

        Raises:
            RequestIdReusedError: The work in flight is for another body.
            InProgressError: The work in flight was just abandoned by its last waiter.
            Exception: What the work failed with.
        """
        found = self._in_flight.get(identity)
        if found is None:
            found = self._start(identity, work, body_hash)
        elif found.body_hash != body_hash:
            raise RequestIdReusedError
        found.waiters += 1
        try:
            return await asyncio.shield(found.task)
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if found.task.cancelled() and me is not None and not me.cancelling():
                raise InProgressError(retry_after=_RETRY_AFTER_ABANDONED) from None
            if found.waiters == 1 and not found.task.done():
                found.task.cancel()
                # The work disposes of its hold before the caller's own end, so that a drain waits for it.
                await asyncio.wait({found.task})
            raise
        finally:
            found.waiters -= 1

    def _start(
        self, identity: tuple[str, str], work: Callable[[], Coroutine[None, None, Answer]], body_hash: bytes
    ) -> _InFlight[Answer]:
        task = asyncio.get_running_loop().create_task(work())
        started = _InFlight(body_hash, task)
        self._in_flight[identity] = started
        self._activity.operations += 1

        # A callback, because a task that is cancelled before its first step runs no `finally`.
        def finish(ended: asyncio.Task[Answer]) -> None:
            self._activity.operations -= 1
            del self._in_flight[identity]
            if not ended.cancelled():
                # Taken by whoever waits; when all of them have left, nobody is to be told.
                ended.exception()

        task.add_done_callback(finish)
        return started
