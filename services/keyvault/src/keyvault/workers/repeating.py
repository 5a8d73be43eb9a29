"""The one pattern of workers: a step, again and again, at an interval.

A step does a bounded piece of work and says whether there is more. Any number of replicas may run the same one; what
must not be done twice is guarded where it is written. A step that fails is logged and counted, and tried again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from servicekit.errors import DomainError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    from servicekit.clock import Clock

_log = structlog.get_logger("keyvault.workers")


class Repeating:
    """Runs one step until it is cancelled."""

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[bool]],
        *,
        clock: Clock,
        interval: timedelta,
        pause: timedelta,
    ) -> None:
        """Pause for `pause` while there is more to do, and for `interval` when there is not."""
        self.name = name
        self._step = step
        self._clock = clock
        self._interval = interval
        self._pause = pause
        self.failures = 0

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            has_more = await self._tried()
            await self._clock.sleep(self._pause if has_more else self._interval)

    async def _tried(self) -> bool:
        try:
            return await self._step()
        except DomainError as error:
            self.failures += 1
            _log.warning("worker.step_failed", worker=self.name, error=type(error).__name__)
            return False
