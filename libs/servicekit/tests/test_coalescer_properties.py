"""Whatever callers, peer and time do, every item has exactly one outcome, and nothing ever wedges."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servicekit.coalescer import Coalescer, CoalescerLimits
from servicekit.errors import OverloadedError
from testkit.fake_clock import FakeClock

_LINGER = timedelta(milliseconds=8)
_BATCH_MAX = 4
_QUEUE_MAX = 6
_IN_FLIGHT_MAX = 2
_TURNS_TO_SETTLE = 500

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.booleans()),
        st.tuples(st.just("submit_nowait"), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("turn"), st.integers(1, 4)),
        st.tuples(st.just("advance"), st.integers(1, 9)),
        st.tuples(
            st.just("answer"),
            st.tuples(st.integers(0, 3), st.sampled_from(["all", "part", "none", "short", "cancelled", "fault"])),
        ),
        st.tuples(st.just("cancel_batch"), st.integers(0, 3)),
    ),
    max_size=60,
)


@dataclass
class World:
    """A coalescer, its callers and its peer, and a record of what became of each item."""

    active: int
    clock: FakeClock = field(default_factory=FakeClock)
    waiters: dict[int, asyncio.Task[str]] = field(default_factory=dict)
    must_send: set[int] = field(default_factory=set)
    started: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    sent: Counter[int] = field(default_factory=Counter)
    unclaimed: Counter[int] = field(default_factory=Counter)
    pending: list[tuple[list[int], asyncio.Future[Sequence[str | Exception]]]] = field(default_factory=list)
    items: int = 0
    is_instant: bool = False
    is_within_bounds: bool = True

    def __post_init__(self) -> None:
        limits = CoalescerLimits(
            batch_max=_BATCH_MAX, queue_max=_QUEUE_MAX, in_flight_max=_IN_FLIGHT_MAX, linger_max=_LINGER
        )
        self.coalescer: Coalescer[int, str] = Coalescer(
            self._flush,
            limits=limits,
            clock=self.clock,
            active=lambda: self.active,
            on_unclaimed=lambda item, _outcome: self.unclaimed.update([item]),
        )

    async def _flush(self, items: list[int]) -> Sequence[str | Exception]:
        # Raised here, a failed assertion would only be the outcome of the batch.
        self.is_within_bounds &= 1 <= len(items) <= _BATCH_MAX
        self.is_within_bounds &= self.coalescer.batches_in_flight <= _IN_FLIGHT_MAX
        self.sent.update(items)
        if self.is_instant:
            return ["done"] * len(items)
        answer: asyncio.Future[Sequence[str | Exception]] = asyncio.get_running_loop().create_future()
        self.pending.append((items, answer))
        return await answer

    async def step(self, name: str, argument: object) -> None:
        await getattr(self, f"_{name}")(argument)

    async def _submit(self, must_send: bool) -> None:  # noqa: FBT001 (drawn by hypothesis)
        item = self._new_item()
        if must_send:
            self.must_send.add(item)
        self.waiters[item] = asyncio.create_task(self._call(item, must_send=must_send))

    async def _call(self, item: int, *, must_send: bool) -> str:
        self.started.add(item)
        return await self.coalescer.submit(item, must_send=must_send)

    async def _submit_nowait(self, _argument: None) -> None:
        item = self._new_item()
        try:
            self.coalescer.submit_nowait(item)
        except OverloadedError:
            self.refused.add(item)

    async def _cancel(self, number: int) -> None:
        alive = [waiter for waiter in self.waiters.values() if not waiter.done()]
        if alive:
            alive[number % len(alive)].cancel()

    async def _turn(self, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(0)

    async def _advance(self, milliseconds: int) -> None:
        await self.clock.advance(timedelta(milliseconds=milliseconds))

    async def _cancel_batch(self, index: int) -> None:
        batches = list(self.coalescer._batches)
        if batches:
            batches[index % len(batches)].cancel()

    async def _answer(self, argument: tuple[int, str]) -> None:
        index, how = argument
        if not self.pending:
            return
        items, answer = self.pending.pop(index % len(self.pending))
        if answer.done():
            return
        if how == "none":
            answer.set_exception(ConnectionError("broken"))
        elif how == "fault":
            answer.set_exception(ValueError("a bug"))
        else:
            answer.set_result(_outcomes(how, len(items)))

    def _new_item(self) -> int:
        self.items += 1
        return self.items - 1

    async def settle(self) -> None:
        """Let a well-behaved peer answer everything, as time passes."""
        self.is_instant = True
        for _items, answer in self.pending:
            if not answer.done():
                answer.set_exception(ConnectionError("broken"))
        for _ in range(_TURNS_TO_SETTLE):
            await self.clock.advance(timedelta(milliseconds=1))
            if not self.coalescer.queued and not self.coalescer.batches_in_flight:
                return
        raise AssertionError("the coalescer is wedged")

    def check(self) -> None:
        assert self.is_within_bounds, "a batch was too large, or too many were out"
        for item in range(self.items):
            waiter = self.waiters.get(item)
            assert waiter is None or waiter.done(), f"item {item} is awaited for ever"
            refused = item in self.refused or (waiter is not None and _was_refused(waiter))
            claimed = waiter is not None and not waiter.cancelled()
            assert self.sent[item] <= 1, f"item {item} was sent twice"
            if refused:
                assert self.sent[item] == 0
                continue
            outcomes = int(claimed) + self.unclaimed[item]
            # A caller cancelled before its first step handed nothing over; one that left the queue took its item back.
            may_have_none = waiter is not None and (
                item not in self.started or (waiter.cancelled() and item not in self.must_send and not self.sent[item])
            )
            assert outcomes == 1 or (outcomes == 0 and may_have_none), f"item {item} has {outcomes} outcomes"


def _outcomes(how: str, count: int) -> list[str | Exception]:
    if how == "part":
        return [ValueError(f"item {index}") if index % 2 else "done" for index in range(count)]
    if how == "short":
        return ["done"] * (count - 1)
    if how == "cancelled":
        failure: BaseException = asyncio.CancelledError()
        return [failure] * count  # type: ignore[list-item]  # what gather(return_exceptions=True) may hand on
    return ["done"] * count


def _was_refused(waiter: asyncio.Task[str]) -> bool:
    return not waiter.cancelled() and isinstance(waiter.exception(), OverloadedError)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=_STEPS, active=st.sampled_from([1, 6, 40]))
def test_every_item_has_one_outcome_and_nothing_wedges(steps: list[tuple[str, object]], active: int) -> None:
    """Cancellation at any moment and every kind of failing batch lose nothing and stop nothing."""

    async def run() -> None:
        world = World(active)
        for name, argument in steps:
            await world.step(name, argument)
        await world._turn(3)
        await world.settle()
        assert await _alive(world) == "done"
        await world.coalescer.aclose()
        world.check()

    asyncio.run(run())


async def _alive(world: World) -> str:
    """Submit one more item: a coalescer that lives answers it within its linger."""
    waiter = asyncio.create_task(world.coalescer.submit(-1))
    await world.clock.advance(_LINGER)
    return await waiter


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=_STEPS, active=st.sampled_from([1, 6, 40]), is_cancelled=st.booleans())
def test_closing_at_any_moment_leaves_nobody_waiting(
    steps: list[tuple[str, object]], active: int, *, is_cancelled: bool
) -> None:
    """After aclose, finished or cancelled, every waiter has an outcome and every settlement one too."""

    async def run() -> None:
        world = World(active)
        for name, argument in steps:
            await world.step(name, argument)
        await world._turn(1)
        closing = asyncio.create_task(world.coalescer.aclose())
        await world._turn(2)
        if is_cancelled:
            closing.cancel()
        world.is_instant = True
        for _items, answer in world.pending:
            if not answer.done():
                answer.set_result([])
        await asyncio.wait([closing])
        await world._turn(5)
        await asyncio.wait(world.waiters.values()) if world.waiters else None
        world.check()

    asyncio.run(run())
