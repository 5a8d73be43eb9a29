"""The only source of time. Everything else is given a `Clock`, so that tests own the time."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from typing_extensions import override


class Clock(Protocol):
    """Wall time, monotonic time and waiting."""

    def now(self) -> datetime:
        """Return the wall time, aware and in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start; never goes back."""
        ...

    async def sleep(self, delay: timedelta) -> None:
        """Wait for `delay`."""
        ...


class SystemClock(Clock):
    """The machine's own clock."""

    @override
    def now(self) -> datetime:
        return datetime.now(UTC)  # noqa: TID251 (this is the clock everyone else is sent to)

    @override
    def monotonic(self) -> float:
        return time.monotonic()  # noqa: TID251 (as above)

    @override
    async def sleep(self, delay: timedelta) -> None:
        await asyncio.sleep(delay.total_seconds())
