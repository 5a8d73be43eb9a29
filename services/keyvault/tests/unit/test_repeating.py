"""The one pattern of workers."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

from keyvault.workers.repeating import Repeating
from servicekit.errors import UnavailableError

if TYPE_CHECKING:
    from testkit.fake_clock import FakeClock

SECOND = timedelta(seconds=1)


async def test_a_worker_pauses_while_there_is_more_and_rests_when_there_is_not(fake_clock: FakeClock) -> None:
    """A backlog is worked off at a bounded rate, and nothing is asked for in between."""
    answers = [True, True, False, False]
    times: list[float] = []

    async def step() -> bool:
        times.append(fake_clock.monotonic())
        return answers[len(times) - 1] if len(times) <= len(answers) else False

    worker = Repeating("test", step, clock=fake_clock, interval=10 * SECOND, pause=SECOND)
    task = asyncio.create_task(worker.run())
    await fake_clock.advance(23 * SECOND)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert [time - times[0] for time in times] == [0, 1, 2, 12, 22]


async def test_a_step_that_fails_is_tried_again(fake_clock: FakeClock) -> None:
    """A database that is away stops no worker for good, and is counted."""
    tries = 0

    async def step() -> bool:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise UnavailableError("away")
        return False

    worker = Repeating("test", step, clock=fake_clock, interval=SECOND, pause=SECOND)
    task = asyncio.create_task(worker.run())
    await fake_clock.advance(2 * SECOND)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert (tries, worker.failures) == (3, 2)
