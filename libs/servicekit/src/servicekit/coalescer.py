"""Gathers single items into batches: while batches to a peer are in flight, the next items wait for company.

    submit ──▶ queue ──(due?)──▶ flush(items) ──▶ outcomes, each to its waiter
                  ▲                   │
                  └──── next batch ◀──┘

A batch is due, as long as fewer than `in_flight_max` are out, as soon as one of these holds:

* at most `at_once_max` operations are active: there is no company to wait for, so the linger is zero when idle;
* the items that somebody awaits reach `active_share` of the active operations: nobody else is likely to come;
* the oldest item has waited `linger_max`;
* a whole batch is queued, or the coalescer is closing.

An item that nobody awaits never makes a batch due by itself before the linger is over; it rides along.

What must hold whatever happens: every item handed over has exactly one outcome, given to its waiter, or to
`on_unclaimed` when the waiter has left or there never was one; and no failure, cancellation or misbehaviour of `flush`
stops the next batch.
"""

import asyncio
import contextvars
import functools
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Generic, TypeVar

from servicekit.clock import Clock
from servicekit.errors import OverloadedError, UnavailableError

Item = TypeVar("Item")
Result = TypeVar("Result")
Started = TypeVar("Started")

# The own estimate of concurrency forgets half of a burst in this many lingers, so that a caller who comes alone after a
# burst waits for nobody.
_PEAK_HALF_LIFE_LINGERS: Final = 2.0
# Timers end a little early or late; less than this is not worth another sleep.
_LINGER_TOLERANCE_S: Final = 0.0001


@dataclass(frozen=True, slots=True, kw_only=True)
class CoalescerLimits:
    """Bounds and the flush rule of a coalescer."""

    batch_max: int = 256
    queue_max: int = 10_000
    in_flight_max: int = 2
    linger_max: timedelta = timedelta(milliseconds=8)
    at_once_max: int = 4
    active_share: float = 0.75


class _Entry(Generic[Item, Result]):
    """An item on its way, and the future of who awaits it."""

    __slots__ = ("enqueued", "future", "is_counted", "is_kept", "item")

    def __init__(self, item: Item, future: "asyncio.Future[Result] | None", enqueued: float, *, is_kept: bool) -> None:
        self.item = item
        self.future = future
        self.enqueued = enqueued
        self.is_kept = is_kept
        # Whether it is one of the queued items that somebody awaits, which the flush rule counts.
        self.is_counted = future is not None

    @property
    def is_wanted(self) -> bool:
        return self.is_kept or (self.future is not None and not self.future.done())


class Coalescer(Generic[Item, Result]):
    """Gathers items into batches and gives every waiter its own outcome. Belongs to one event loop."""

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        limits: CoalescerLimits,
        clock: Clock,
        active: Callable[[], int] | None = None,
        on_unclaimed: Callable[[Item, Result | Exception], None] | None = None,
    ) -> None:
        """Make a coalescer.

        Args:
            flush: Sends a batch; answers one outcome per item, in order. What it raises is every item's outcome.
            limits: Bounds and the flush rule.
            clock: Measures the linger.
            active: Tells how many operations are under way that may still submit soon, that is, not those which wait
            for
                a provider. Left out, the recent peak of awaited items stands for it.
            on_unclaimed: Gets the outcome of an item that nobody awaits (any more). Must not raise.
        """
        self._flush = flush
        self._limits = limits
        self._clock = clock
        self._active = active or self._estimated_active
        self._on_unclaimed = on_unclaimed
        self._linger = limits.linger_max.total_seconds()
        self._queue: deque[_Entry[Item, Result]] = deque()
        self._awaited_queued = 0
        self._awaited_sent = 0
        self._peak = 0.0
        self._peak_time = clock.monotonic()
        self._batches: set[asyncio.Task[Sequence[Result | Exception]]] = set()
        self._is_pump_scheduled = False
        self._lingering: asyncio.Task[None] | None = None
        self._is_closing = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def queued(self) -> int:
        """How many items wait for a batch."""
        return len(self._queue)

    @property
    def batches_in_flight(self) -> int:
        """How many batches are out."""
        return len(self._batches)

    async def submit(self, item: Item, *, must_send: bool = False, patience: timedelta | None = None) -> Result:
        """Hand over `item` and wait for its outcome, at most for `patience`.

        A caller that is cancelled while its item is still queued takes the item back, unless `must_send`: then it goes
        out all the same. Once it went out, its outcome goes to `on_unclaimed`.

        Raises:
            TimeoutError: Patience ended first. The outcome goes to `on_unclaimed`.
            OverloadedError: The queue is full.
            UnavailableError: The coalescer has been closed, or its batch was cancelled.
            Exception: What the batch, or the batch for this item, failed with.
        """
        loop = self._running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        entry = _Entry(item, future, self._clock.monotonic(), is_kept=must_send)
        self._enqueue(entry)
        self._awaited_queued += 1
        self._schedule_pump()
        # A timer of its own, and not `asyncio.timeout`, which costs as much as the rest of this method.
        timer = loop.call_later(patience.total_seconds(), self._give_up, entry, future) if patience else None
        try:
            return await future
        except (asyncio.CancelledError, GeneratorExit):
            self._leave(entry, future)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def submit_nowait(self, item: Item) -> None:
        """Hand over `item` and do not wait; its outcome goes to `on_unclaimed`.

        Raises:
            OverloadedError: The queue is full.
            UnavailableError: The coalescer has been closed.
        """
        self._enqueue(_Entry(item, None, self._clock.monotonic(), is_kept=True))
        self._schedule_pump()

    async def aclose(self) -> None:
        """Refuse new items, send what is queued without linger, and wait for what is out.

        When this is cancelled, batches that are out are cancelled too, and every waiter is told.
        """
        self._is_closing = True
        try:
            while self._queue or self._batches:
                self._pump()
                if self._batches:
                    await asyncio.wait(self._batches, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self._lingering is not None:
                self._lingering.cancel()
            for batch in self._batches:
                batch.cancel()
            while self._queue:
                self._settle(self._uncount(self._queue.popleft()), UnavailableError("The coalescer was closed. Retry."))

    def _enqueue(self, entry: _Entry[Item, Result]) -> None:
        if self._is_closing:
            raise UnavailableError("The coalescer is closed. Retry at another replica.")
        if len(self._queue) >= self._limits.queue_max:
            self._drop_unwanted()
            if len(self._queue) >= self._limits.queue_max:
                raise OverloadedError("Too many items wait for a batch. Retry later.", queued=len(self._queue))
        self._queue.append(entry)

    def _drop_unwanted(self) -> None:
        kept = [entry for entry in self._queue if entry.is_wanted]
        self._queue.clear()
        self._queue.extend(kept)

    def _uncount(self, entry: _Entry[Item, Result]) -> _Entry[Item, Result]:
        if entry.is_counted:
            entry.is_counted = False
            self._awaited_queued -= 1
        return entry

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        # Kept, because Python 3.11 makes a system call each time that it is asked.
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _give_up(self, entry: _Entry[Item, Result], future: "asyncio.Future[Result]") -> None:
        """Tell the waiter of `entry` that its patience is over; the item, if it must be sent, takes its course."""
        self._uncount(entry)
        if not future.done():
            entry.future = None
            future.set_exception(TimeoutError())

    def _leave(self, entry: _Entry[Item, Result], future: "asyncio.Future[Result]") -> None:
        """Forget the waiter of `entry`, who was cancelled."""
        self._uncount(entry)
        if not future.done():
            future.cancel()
        elif not future.cancelled():
            # The outcome came, or patience ended, and then the waiter was cancelled before it ran again.
            failure = future.exception()
            if entry.future is not None:
                self._disclaim(entry.item, future.result() if failure is None else _as_exception(failure))

    def _schedule_pump(self) -> None:
        # One pump a turn of the loop: items of callers that run in the same turn share a batch, at no delay.
        if not self._is_pump_scheduled:
            self._is_pump_scheduled = True
            self._running_loop().call_soon(self._run_scheduled_pump)

    def _run_scheduled_pump(self) -> None:
        self._is_pump_scheduled = False
        self._pump()

    def _pump(self) -> None:
        """Send every batch that is due; make sure that what stays is looked at again."""
        while self._queue and len(self._batches) < self._limits.in_flight_max and self._is_due():
            self._send_batch()
        if self._queue and len(self._batches) < self._limits.in_flight_max and self._lingering is None:
            self._lingering = self._start(self._outwait_linger())

    def _is_due(self) -> bool:
        limits = self._limits
        if self._is_closing or len(self._queue) >= limits.batch_max:
            return True
        if self._awaited_queued:
            active = self._active()
            if active <= limits.at_once_max or self._awaited_queued >= limits.active_share * active:
                return True
        return self._linger_left() <= _LINGER_TOLERANCE_S

    def _linger_left(self) -> float:
        return self._linger - (self._clock.monotonic() - self._queue[0].enqueued)

    def _estimated_active(self) -> int:
        now = self._clock.monotonic()
        kept = self._peak * 0.5 ** ((now - self._peak_time) / (self._linger * _PEAK_HALF_LIFE_LINGERS or 1.0))
        self._peak = max(kept, float(self._awaited_queued + self._awaited_sent))
        self._peak_time = now
        return int(self._peak)

    def _send_batch(self) -> None:
        entries: list[_Entry[Item, Result]] = []
        awaited = 0
        while self._queue and len(entries) < self._limits.batch_max:
            entry = self._queue.popleft()
            awaited += entry.is_counted
            self._uncount(entry)
            if entry.is_wanted:
                entries.append(entry)
        if not entries:
            return
        self._awaited_sent += awaited
        batch = self._start(self._call([entry.item for entry in entries]))
        self._batches.add(batch)
        # A callback and not a `finally` inside the task: a task cancelled before its first step runs none of its code.
        batch.add_done_callback(functools.partial(self._finish_batch, entries, awaited))

    async def _call(self, items: list[Item]) -> Sequence[Result | Exception]:
        return await self._flush(items)

    @staticmethod
    def _start(coroutine: Coroutine[None, None, Started]) -> "asyncio.Task[Started]":
        # A batch serves many callers, so it must not inherit the context (identity, deadline) of the one whose item
        # happened to complete it.
        return asyncio.get_running_loop().create_task(coroutine, context=contextvars.Context())

    async def _outwait_linger(self) -> None:
        """Sleep until the oldest queued item has waited long enough, then pump; sleep on when it was sent meanwhile."""
        while self._queue:
            left = self._linger_left()
            if left <= _LINGER_TOLERANCE_S:
                break
            await self._clock.sleep(timedelta(seconds=left))
        self._lingering = None
        self._pump()

    def _finish_batch(
        self,
        entries: list[_Entry[Item, Result]],
        awaited: int,
        batch: "asyncio.Task[Sequence[Result | Exception]]",
    ) -> None:
        self._batches.discard(batch)
        self._awaited_sent -= awaited
        for entry, outcome in zip(entries, _outcomes(batch, len(entries)), strict=True):
            self._settle(entry, outcome)
        self._pump()

    def _settle(self, entry: _Entry[Item, Result], outcome: Result | Exception) -> None:
        if entry.future is None or entry.future.done():
            self._disclaim(entry.item, outcome)
        elif isinstance(outcome, Exception):
            entry.future.set_exception(outcome)
        else:
            entry.future.set_result(outcome)

    def _disclaim(self, item: Item, outcome: Result | Exception) -> None:
        if self._on_unclaimed is None:
            return
        try:
            self._on_unclaimed(item, outcome)
        except Exception as error:  # noqa: BLE001 (a faulty hook must not keep the other waiters from their outcomes)
            context = {"message": "on_unclaimed of a coalescer raised", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


def _outcomes(batch: "asyncio.Task[Sequence[Result | Exception]]", count: int) -> Sequence[Result | Exception]:
    """Return one outcome per item of a finished batch, whatever it did."""
    if batch.cancelled():
        return [UnavailableError("The batch was cancelled. Retry.")] * count
    failure = batch.exception()
    if failure is not None:
        return [_as_exception(failure)] * count
    answered = batch.result()
    if len(answered) != count:
        return [RuntimeError(f"a batch of {count} items was answered with {len(answered)} outcomes")] * count
    return [_as_exception(outcome) if isinstance(outcome, BaseException) else outcome for outcome in answered]


def _as_exception(failure: BaseException) -> Exception:
    # A future refuses StopIteration, and the cancellation of a batch must not look like one of its waiter.
    if isinstance(failure, Exception) and not isinstance(failure, StopIteration):
        return failure
    return UnavailableError("The batch was stopped. Retry.")
