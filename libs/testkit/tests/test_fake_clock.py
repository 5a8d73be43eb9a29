"""The fake clock wakes sleepers in order, each at its own time."""

import asyncio
from datetime import timedelta

from testkit.fake_clock import FakeClock


async def test_sleepers_wake_in_order_of_their_time(fake_clock: FakeClock) -> None:
    """Each sees the time that it asked for, whatever the order in which they went to sleep."""
    seen: list[tuple[str, timedelta]] = []
    start = fake_clock.now()

    async def sleeper(name: str, seconds: int) -> None:
        await fake_clock.sleep(timedelta(seconds=seconds))
        seen.append((name, fake_clock.now() - start))

    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper("late", 5))
        group.create_task(sleeper("early", 2))
        await fake_clock.advance(timedelta(seconds=3))
        assert [name for name, _ in seen] == ["early"]
        assert fake_clock.sleepers == 1
        await fake_clock.advance(timedelta(seconds=3))
    assert seen == [("early", timedelta(seconds=2)), ("late", timedelta(seconds=5))]
    assert fake_clock.now() - start == timedelta(seconds=6)


async def test_a_sleeper_that_sleeps_again_is_woken_within_the_same_advance(fake_clock: FakeClock) -> None:
    """A loop with a period runs as often as the advanced time holds periods."""
    ticks = 0

    async def ticker() -> None:
        nonlocal ticks
        while True:
            await fake_clock.sleep(timedelta(seconds=1))
            ticks += 1

    task = asyncio.create_task(ticker())
    await fake_clock.advance(timedelta(seconds=10))
    task.cancel()
    assert ticks == 10


async def test_a_stepped_wall_clock_leaves_the_monotonic_one_alone(fake_clock: FakeClock) -> None:
    """An administrator's step neither wakes sleepers nor moves monotonic time."""
    before = fake_clock.monotonic()
    task = asyncio.create_task(fake_clock.sleep(timedelta(seconds=10)))
    await fake_clock.advance(timedelta(seconds=1))
    fake_clock.set_wall_clock(fake_clock.now() + timedelta(days=1))
    await fake_clock.advance(timedelta(seconds=1))
    assert not task.done()
    assert fake_clock.monotonic() - before == 2
    await fake_clock.advance(timedelta(seconds=8))
    assert task.done()
