import asyncio
import contextvars
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest

from servicekit.coalescer import Coalescer, CoalescerLimits
from servicekit.errors import OverloadedError, UnavailableError
from testkit.fake_clock import FakeClock

_LINGER = timedelta(milliseconds=8)
_MARK: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="clean")


class Peer:
    """Takes batches, and answers each when the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.answers: list[asyncio.Future[Sequence[str | Exception]]] = []
        self.is_instant = False

    async def flush(self, items: list[int]) -> Sequence[str | Exception]:
        self.batches.append(items)
        if self.is_instant:
            return [f"done {item}" for item in items]
        answer: asyncio.Future[Sequence[str | Exception]] = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        return await answer

    def answer(self, index: int) -> None:
        self.answers[index].set_result([f"done {item}" for item in self.batches[index]])


class Unclaimed:
    def __init__(self) -> None:
        self.outcomes: list[tuple[int, str | Exception]] = []

    def __call__(self, item: int, outcome: str | Exception) -> None:
        self.outcomes.append((item, outcome))


async def _turn(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0)


def _coalescer(
    peer: Peer, clock: FakeClock, *, active: int | None = None, unclaimed: Unclaimed | None = None, **limits: int
) -> Coalescer[int, str]:
    return Coalescer(
        peer.flush,
        limits=CoalescerLimits(linger_max=_LINGER, **limits),
        clock=clock,
        active=None if active is None else lambda: active,
        on_unclaimed=unclaimed,
    )


async def test_a_lone_item_leaves_without_linger(fake_clock: FakeClock) -> None:
    """With nobody else active, no time passes between submit and flush."""
    peer = Peer()
    peer.is_instant = True
    coalescer = _coalescer(peer, fake_clock)
    assert await coalescer.submit(1) == "done 1"
    assert peer.batches == [[1]]
    assert fake_clock.sleepers == 0


async def test_items_of_one_turn_share_a_batch(fake_clock: FakeClock) -> None:
    """Items submitted in the same turn of the loop travel together, without linger."""
    peer = Peer()
    peer.is_instant = True
    coalescer = _coalescer(peer, fake_clock, active=4)
    answers = await asyncio.gather(*(coalescer.submit(item) for item in range(4)))
    assert list(answers) == [f"done {item}" for item in range(4)]
    assert peer.batches == [[0, 1, 2, 3]]


async def test_many_active_wait_for_three_quarters(fake_clock: FakeClock) -> None:
    """Beyond four active, a batch leaves when three quarters of them have submitted."""
    peer = Peer()
    coalescer = _coalescer(peer, fake_clock, active=8)
    waiters = [asyncio.create_task(coalescer.submit(item)) for item in range(5)]
    await _turn()
    assert peer.batches == []
    waiters.append(asyncio.create_task(coalescer.submit(5)))
    await _turn()
    assert peer.batches == [[0, 1, 2, 3, 4, 5]]
    peer.answer(0)
    await asyncio.gather(*waiters)


async def test_callers_who_left_are_no_company(fake_clock: FakeClock) -> None:
    """An item taken back does not make a batch due."""
    peer = Peer()
    coalescer = _coalescer(peer, fake_clock, active=8)
    waiters = [asyncio.create_task(coalescer.submit(item)) for item in range(5)]
    await _turn()
    waiters[0].cancel()
    await _turn()
    waiters.append(asyncio.create_task(coalescer.submit(5)))
    await _turn()
    assert peer.batches == []
    await fake_clock.advance(_LINGER)
    await _turn()
    assert peer.batches == [[1, 2, 3, 4, 5]]
    peer.answer(0)
    await asyncio.wait(waiters)


async def test_the_linger_ends_the_wait_for_company(fake_clock: FakeClock) -> None:
    """When the company does not come, the batch leaves after the longest linger, not before."""
    peer = Peer()
    coalescer = _coalescer(peer, fake_clock, active=100)
    waiter = asyncio.create_task(coalescer.submit(1))
    await fake_clock.advance(_LINGER - timedelta(milliseconds=1))
    await _turn()
    assert peer.batches == []
    await fake_clock.advance(timedelta(milliseconds=1))
    await _turn()
    assert peer.batches == [[1]]
    peer.answer(0)
    assert await waiter == "done 1"


async def test_no_more_batches_than_allowed_are_in_flight(fake_clock: FakeClock) -> None:
    """With as many batches out as allowed, items gather, and leave together when one returns."""
    peer = Peer()
    coalescer = _coalescer(peer, fake_clock, active=1, in_flight_max=2)
    waiters = []
    for item in range(5):
        waiters.append(asyncio.create_task(coalescer.submit(item)))
        await _turn()
    assert peer.batches == [[0], [1]]
    peer.answer(0)
    await _turn()
    assert peer.batches == [[0], [1], [2, 3, 4]]
    peer.answer(1)
    peer.answer(2)
    assert await asyncio.gather(*waiters) == [f"done {item}" for item in range(5)]


async def test_a_batch_holds_no_more_than_its_bound(fake_clock: FakeClock) -> None:
    """A queue longer than a batch leaves in several."""
    peer = Peer()
    peer.is_instant = True
    coalescer = _coalescer(peer, fake_clock, active=1, batch_max=2, in_flight_max=1)
    await asyncio.gather(*(coalescer.submit(item) for item in range(5)))
    assert peer.batches == [[0, 1], [2, 3], [4]]


async def test_an_item_nobody_awaits_does_not_make_a_batch_due(fake_clock: FakeClock) -> None:
    """A fire-and-forget item waits for the linger, even when nothing else is active."""
    peer, unclaimed = Peer(), Unclaimed()
    peer.is_instant = True
    coalescer = _coalescer(peer, fake_clock, active=1, unclaimed=unclaimed)
    coalescer.submit_nowait(1)
    await _turn()
    assert peer.batches == []
    await fake_clock.advance(_LINGER)
    await _turn()
    assert peer.batches == [[1]]
    assert unclaimed.outcomes == [(1, "done 1")]


async def test_an_item_nobody_awaits_rides_along(fake_clock: FakeClock) -> None:
    """A fire-and-forget item leaves with the next awaited one, in order."""
    peer = Peer()
    peer.is_instant = True
    coalescer = _coalescer(peer, fake_clock, active=1)
    coalescer.submit_nowait(1)
    assert await coalescer.submit(2) == "done 2"
    assert peer.batches == [[1, 2]]


async def test_items_nobody_awaits_do_not_count_as_company(fake_clock: FakeClock) -> None:
    """Only awaited items are measured against the active operations."""
    peer = Peer()
    coalescer = _coalescer(peer, fake_clock, active=8)
    for item in range(6):
        coalescer.submit_nowait(item)
    waiter = asyncio.create_task(coalescer.submit(6))
    await _turn()
    assert peer.batches == []
    await fake_clock.advance(_LINGER)
    await _turn()
    peer.answer(0)
    assert await waiter == "done 6"


async def test_a_full_queue_refuses(fake_clock: FakeClock) -> None:
    """At its bound the queue refuses with a typed error that says when to come back, and takes items again later."""
    peer = Peer()
    coalescer = _coalescer(peer, fake_clock, active=1, queue_max=2, in_flight_max=1)
    waiters = [asyncio.create_task(coalescer.submit(0))]
    await _turn()
    waiters += [asyncio.create_task(coalescer.submit(item)) for item in (1, 2)]
    await _turn()
    with pytest.raises(OverloadedError) as refused:
        await coalescer.submit(3)
    assert refused.value.retry_after is not None
    with pytest.raises(OverloadedError):
        coalescer.submit_nowait(3)
    peer.answer(0)
    await _turn()
    waiters.append(asyncio.create_task(coalescer.submit(4)))
    await _turn()
    peer.answer(1)
    await _turn()
    peer.answer(2)
    assert await asyncio.gather(*waiters) == ["done 0", "done 1", "done 2", "done 4"]


async def test_a_full_queue_of_items_taken_back_takes_new_ones(fake_clock: FakeClock) -> None:
    """Callers who left do not keep others out."""
    peer = Peer()
    coalescer = _coalescer(peer, fake_clock, active=1, queue_max=2, in_flight_max=1)
    first = asyncio.create_task(coalescer.submit(0))
    await _turn()
    leavers = [asyncio.create_task(coalescer.submit(item)) for item in (1, 2)]
    await _turn()
    for leaver in leavers:
        leaver.cancel()
    await _turn()
    last = asyncio.create_task(coalescer.submit(3))
    await _turn()
    peer.answer(0)
    await _turn()
    peer.answer(1)
    assert await last == "done 3"
    assert await first == "done 0"
    assert peer.batches == [[0], [3]]


async def test_an_item_taken_back_is_not_sent(fake_clock: FakeClock) -> None:
    """A caller that leaves before its item does takes it back."""
    peer, unclaimed = Peer(), Unclaimed()
    coalescer = _coalescer(peer, fake_clock, active=8, unclaimed=unclaimed)
    waiter = asyncio.create_task(coalescer.submit(1))
    await _turn()
    waiter.cancel()
    await fake_clock.advance(_LINGER)
    await _turn()
    assert peer.batches == []
    assert unclaimed.outcomes == []
    assert coalescer.queued == 0


async def test_an_item_that_must_be_sent_is_sent_though_its_caller_left(fake_clock: FakeClock) -> None:
    """A settlement whose caller is cancelled is not lost."""
    peer, unclaimed = Peer(), Unclaimed()
    peer.is_instant = True
    coalescer = _coalescer(peer, fake_clock, active=8, unclaimed=unclaimed)
    waiter = asyncio.create_task(coalescer.submit(1, must_send=True))
    await _turn()
    waiter.cancel()
    await fake_clock.advance(_LINGER)
    await _turn()
    assert peer.batches == [[1]]
    assert unclaimed.outcomes == [(1, "done 1")]


async def test_the_outcome_of_a_caller_that_left_in_flight_is_unclaimed(fake_clock: FakeClock) -> None:
    """What was granted to a caller that left can be given back."""
    peer, unclaimed = Peer(), Unclaimed()
    coalescer = _coalescer(peer, fake_clock, active=1, unclaimed=unclaimed)
    waiter = asyncio.create_task(coalescer.submit(1))
    await _turn()
    waiter.cancel()
    await _turn()
    peer.answer(0)
    await _turn()
    assert unclaimed.outcomes == [(1, "done 1")]


async def test_the_outcome_that_meets_a_cancellation_is_unclaimed(fake_clock: FakeClock) -> None:
    """A caller cancelled between its outcome and its next step does not swallow the outcome."""
    peer, unclaimed = Peer(), Unclaimed()
    coalescer = _coalescer(peer, fake_clock, active=1, unclaimed=unclaimed)
    waiter = asyncio.create_task(coalescer.submit(1))
    await _turn()
    peer.answer(0)
    await _until(lambda: not coalescer.batches_in_flight)
    # The future has its result, and the waiter has not run yet.
    assert not waiter.done()
    waiter.cancel()
    await asyncio.wait([waiter])
    assert waiter.cancelled()
    assert unclaimed.outcomes == [(1, "done 1")]


async def test_a_batch_that_fails_fails_each_of_its_items(fake_clock: FakeClock) -> None:
    """The failure of a batch is the outcome of each of its items, and the next batch goes out."""
    peer = Peer()
    coalescer = _coalescer(peer, fake_clock, active=1, in_flight_max=1)
    waiters = [asyncio.create_task(coalescer.submit(item)) for item in (0, 1)]
    await _turn()
    later = asyncio.create_task(coalescer.submit(2))
    peer.answers[0].set_exception(ConnectionError("broken"))
    for waiter in waiters:
        with pytest.raises(ConnectionError):
            await waiter
    await _turn()
    peer.answer(1)
    assert await later == "done 2"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        pytest.param([], RuntimeError, id="too few outcomes"),
        pytest.param(["a", "b", "c"], RuntimeError, id="too many outcomes"),
        pytest.param([StopIteration(), "b"], UnavailableError, id="an exception that futures refuse"),
        pytest.param([asyncio.CancelledError(), "b"], UnavailableError, id="a cancellation as an outcome"),
        pytest.param([ValueError("item"), "b"], ValueError, id="an item's own failure"),
    ],
)
async def test_a_misbehaving_flush_does_not_wedge(
    fake_clock: FakeClock, answer: list[str | Exception], kind: type[Exception]
) -> None:
    """Whatever flush answers, each waiter gets an outcome and the next batch goes out."""
    peer = Peer()
    coalescer = _coalescer(peer, fake_clock, active=1, in_flight_max=1)
    waiters = [asyncio.create_task(coalescer.submit(item)) for item in (0, 1)]
    await _turn()
    peer.answers[0].set_result(answer)
    with pytest.raises(kind):
        await waiters[0]
    await asyncio.wait(waiters)
    outcomes = [waiter.exception() or waiter.result() for waiter in waiters]
    assert len(outcomes) == 2
    last = asyncio.create_task(coalescer.submit(2))
    await _turn()
    peer.answer(1)
    assert await last == "done 2"


async def test_a_cancelled_batch_is_no_cancellation_of_its_callers(fake_clock: FakeClock) -> None:
    """When the batch's task is cancelled from outside, even before its first step, callers get a typed error."""
    peer = Peer()
    coalescer = _coalescer(peer, fake_clock, active=1, in_flight_max=1)
    waiter = asyncio.create_task(coalescer.submit(0))
    await _until(lambda: coalescer.batches_in_flight > 0)
    for batch in list(coalescer._batches):
        batch.cancel()
    with pytest.raises(UnavailableError):
        await waiter
    last = asyncio.create_task(coalescer.submit(1))
    await _turn()
    peer.answer(0)
    assert await last == "done 1"


async def test_a_faulty_hook_does_not_keep_others_waiting(fake_clock: FakeClock) -> None:
    """An exception in on_unclaimed is reported to the loop, and every waiter still gets its outcome."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))

    def fail(item: int, outcome: str | Exception) -> None:
        raise ValueError(item)

    peer = Peer()
    peer.is_instant = True
    coalescer: Coalescer[int, str] = Coalescer(
        peer.flush, limits=CoalescerLimits(linger_max=_LINGER), clock=fake_clock, active=lambda: 1, on_unclaimed=fail
    )
    coalescer.submit_nowait(0)
    assert await coalescer.submit(1) == "done 1"
    assert [str(each) for each in reported] == ["0"]


async def test_close_sends_what_is_queued_and_waits(fake_clock: FakeClock) -> None:
    """Closing sends the queue without linger, waits for every batch, and refuses what comes after."""
    peer, unclaimed = Peer(), Unclaimed()
    coalescer = _coalescer(peer, fake_clock, active=100, unclaimed=unclaimed, in_flight_max=1)
    waiter = asyncio.create_task(coalescer.submit(0))
    await _turn()
    coalescer.submit_nowait(1)
    closing = asyncio.create_task(coalescer.aclose())
    await _turn()
    assert peer.batches == [[0, 1]]
    assert not closing.done()
    with pytest.raises(UnavailableError):
        await coalescer.submit(2)
    peer.answer(0)
    await closing
    assert await waiter == "done 0"
    assert unclaimed.outcomes == [(1, "done 1")]


async def test_a_cancelled_close_tells_every_waiter(fake_clock: FakeClock) -> None:
    """When the time to close is over, nobody waits for ever."""
    peer, unclaimed = Peer(), Unclaimed()
    coalescer = _coalescer(peer, fake_clock, active=1, unclaimed=unclaimed, in_flight_max=1)
    sent = asyncio.create_task(coalescer.submit(0))
    await _turn()
    queued = asyncio.create_task(coalescer.submit(1))
    await _turn()
    coalescer.submit_nowait(2)
    closing = asyncio.create_task(coalescer.aclose())
    await _turn()
    closing.cancel()
    for waiter in (sent, queued):
        with pytest.raises(UnavailableError):
            await waiter
    assert [item for item, _ in unclaimed.outcomes] == [2]


async def test_a_batch_runs_outside_the_context_of_its_callers(fake_clock: FakeClock) -> None:
    """A batch must not run under the identity or deadline of whoever completed it."""
    seen: list[str] = []

    async def flush(items: list[int]) -> list[str]:
        seen.append(_MARK.get())
        return ["done"] * len(items)

    coalescer: Coalescer[int, str] = Coalescer(
        flush, limits=CoalescerLimits(linger_max=_LINGER), clock=fake_clock, active=lambda: 1
    )
    _MARK.set("a caller's")
    await coalescer.submit(1)
    assert seen == ["clean"]


async def test_the_estimate_forgets_a_burst(fake_clock: FakeClock) -> None:
    """Without a gauge, company is expected right after a burst, and no longer a while after it."""
    peer = Peer()
    coalescer = _coalescer(peer, fake_clock)
    burst = [asyncio.create_task(coalescer.submit(item)) for item in range(64)]
    await _turn()
    peer.answer(0)
    await asyncio.gather(*burst)
    straggler = asyncio.create_task(coalescer.submit(64))
    await _turn()
    assert len(peer.batches) == 1
    await fake_clock.advance(_LINGER)
    await _turn()
    peer.answer(1)
    await straggler
    await fake_clock.advance(_LINGER * 10)
    lone = asyncio.create_task(coalescer.submit(65))
    await _turn()
    assert peer.batches[-1] == [65]
    peer.answer(2)
    await lone


async def test_patience_ends_the_wait_and_not_the_item(fake_clock: FakeClock) -> None:
    """The waiter goes on; what must be sent is sent once, and its outcome has one taker."""
    peer, unclaimed = Peer(), Unclaimed()
    coalescer = _coalescer(peer, fake_clock, unclaimed=unclaimed)
    with pytest.raises(TimeoutError):
        await coalescer.submit(1, must_send=True, patience=timedelta(milliseconds=1))
    assert peer.batches == [[1]]
    peer.answer(0)
    await _until(lambda: not coalescer.batches_in_flight)
    assert unclaimed.outcomes == [(1, "done 1")]


async def test_a_waiter_cancelled_as_its_patience_ends_claims_no_outcome(fake_clock: FakeClock) -> None:
    """Its item is still out: the outcome that comes later is the only one."""
    peer, unclaimed = Peer(), Unclaimed()
    coalescer = _coalescer(peer, fake_clock, unclaimed=unclaimed)
    loop = asyncio.get_running_loop()
    waiter = asyncio.create_task(coalescer.submit(1, must_send=True, patience=timedelta(microseconds=1)))
    await _until(lambda: bool(peer.batches))
    # In the turn in which the timer fires, after it: the waiter has not run again yet.
    loop.call_later(1e-6, waiter.cancel)
    with pytest.raises((asyncio.CancelledError, TimeoutError)):
        await waiter
    assert unclaimed.outcomes == []
    peer.answer(0)
    await _until(lambda: not coalescer.batches_in_flight)
    assert unclaimed.outcomes == [(1, "done 1")]


async def test_an_answer_in_time_needs_no_patience(fake_clock: FakeClock) -> None:
    """The timer goes with the waiter."""
    peer = Peer()
    peer.is_instant = True
    coalescer = _coalescer(peer, fake_clock)
    assert await coalescer.submit(1, patience=timedelta(seconds=30)) == "done 1"
