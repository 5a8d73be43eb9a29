"""A clock that moves only when told to."""

import asyncio
import heapq
from datetime import UTC, datetime, timedelta

from typing_extensions import override

from servicekit.clock import Clock

_START = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)


class FakeClock(Clock):
    """Time for tests: sleepers wake in order of their time as `advance` passes it."""

    def __init__(self, now: datetime = _START) -> None:
        """Start at the given aware time."""
        self._now = now
        self._monotonic = 1_000.0
        self._sequence = 0
        self._sleepers: list[tuple[datetime, int, asyncio.Future[None]]] = []

    @override
    def now(self) -> datetime:
        """Return the current time."""
        return self._now

    @override
    def monotonic(self) -> float:
        """Return seconds that never run backwards, also after `set_wall_clock`."""
        return self._monotonic

    @property
    def sleepers(self) -> int:
        """Return how many tasks sleep now, so that a test can wait for its subject to reach its sleep."""
        return sum(not waiter.done() for _, _, waiter in self._sleepers)

    @override
    async def sleep(self, delay: timedelta) -> None:
        """Sleep until `advance` has passed the delay; a zero delay only yields."""
        if delay <= timedelta(0):
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sequence += 1
        heapq.heappush(self._sleepers, (self._now + delay, self._sequence, waiter))
        await waiter

    async def advance(self, delta: timedelta) -> None:
        """Move time forward, waking each sleeper at its own time and letting it run before the next."""
        end = self._now + delta
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            wake_at, _, waiter = heapq.heappop(self._sleepers)
            self._move_to(max(wake_at, self._now))
            if not waiter.done():
                waiter.set_result(None)
                await self._settle()
        self._move_to(end)

    def set_wall_clock(self, now: datetime) -> None:
        """Step the wall clock, as an administrator or NTP might; the monotonic clock and sleepers keep their pace."""
        step = now - self._now
        self._now = now
        self._sleepers = [(wake_at + step, sequence, waiter) for wake_at, sequence, waiter in self._sleepers]
        heapq.heapify(self._sleepers)

    def _move_to(self, now: datetime) -> None:
        self._monotonic += (now - self._now).total_seconds()
        self._now = now

    async def _settle(self) -> None:
        # Woken tasks usually need a few turns of the loop (a lock, a gather) before they sleep again.
        for _ in range(20):
            await asyncio.sleep(0)
