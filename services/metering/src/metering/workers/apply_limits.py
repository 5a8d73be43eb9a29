"""Limits that Redis did not have when they were set are applied as soon as it can be reached."""

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from metering.domain.errors import DependencyUnavailableError
from metering.ports import Limits
from metering.usecases.change_limits import ApplyLimits
from servicekit.clock import Clock
from servicekit.errors import DomainError

_log = structlog.get_logger("metering.apply_limits")

_ACCOUNTS_MAX: Final = 100


class PendingLimits:
    """Goes on where `SetLimit` answered `is_pending`."""

    def __init__(self, *, limits: Limits, apply_limits: ApplyLimits, clock: Clock, pace: timedelta) -> None:
        """Use ports, and look this often."""
        self._limits = limits
        self._apply = apply_limits
        self._clock = clock
        self._pace = pace

    async def run(self, stop: asyncio.Event) -> None:
        """Look until asked to stop."""
        while not stop.is_set():
            try:
                await self.round()
            except DependencyUnavailableError:
                _log.info("apply_limits.waiting")
            await self._clock.sleep(self._pace)

    async def round(self) -> int:
        """Apply what is pending; return how many accounts were brought up to date.

        Raises:
            DependencyUnavailableError: Postgres cannot be reached.
        """
        applied = 0
        for account in await self._limits.unapplied(count=_ACCOUNTS_MAX):
            try:
                applied += await self._apply(account)
            except DomainError as error:
                _log.warning("apply_limits.failed", account=account, reason=error.message)
        return applied
