"""Housekeeping in Postgres: tables for the ids of the coming weeks, and answers that nobody can ask for any more."""

import asyncio
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from metering.domain.errors import DependencyUnavailableError
from metering.ports import Ledger
from servicekit.clock import Clock

_log = structlog.get_logger("metering.maintain")

_EVERY: Final = timedelta(hours=6)
_LOOK: Final = timedelta(seconds=1)
_REQUESTS_KEPT: Final = timedelta(days=36)


class ForgettableRequests(Protocol):
    """Answers by request id, as far as housekeeping goes."""

    async def forget(self, before: datetime) -> None:
        """Delete answers kept since before a time."""
        ...


class Maintenance:
    """Runs at start and a few times a day."""

    def __init__(self, *, ledger: Ledger, requests: ForgettableRequests, clock: Clock) -> None:
        """Use ports."""
        self._ledger = ledger
        self._requests = requests
        self._clock = clock

    async def run(self, stop: asyncio.Event) -> None:
        """Keep house until asked to stop."""
        done_at = self._clock.monotonic()
        while not stop.is_set():
            await self._clock.sleep(_LOOK)
            if self._clock.monotonic() - done_at < _EVERY.total_seconds():
                continue
            done_at = self._clock.monotonic()
            try:
                await self.round()
            except DependencyUnavailableError:
                _log.warning("maintain.waiting")

    async def round(self) -> None:
        """Keep house once.

        Raises:
            DependencyUnavailableError: Postgres cannot be reached.
        """
        now = self._clock.now()
        await self._ledger.prepare_partitions(now)
        await self._requests.forget(now - _REQUESTS_KEPT)
