"""Integrates the audit log at an interval, and forgets old checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from keyvault.domain.errors import AuditLogCorruptError
from servicekit.errors import DomainError

if TYPE_CHECKING:
    from datetime import timedelta

    from keyvault.ports import AuditTree
    from keyvault.usecases.integrate_log import IntegrateLog
    from servicekit.clock import Clock

_log = structlog.get_logger("keyvault.integrating")


class Integrating:
    """One pass after another. A pass that fails is logged, and the next one tries again."""

    def __init__(
        self, integrate: IntegrateLog, tree: AuditTree, *, clock: Clock, interval: timedelta, kept: timedelta
    ) -> None:
        """Let `integrate` sign every `interval`, and keep checkpoints in `tree` for `kept`."""
        self._integrate = integrate
        self._tree = tree
        self._clock = clock
        self._interval = interval
        self._kept = kept
        self._passes = 0

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._clock.sleep(self._interval)
            await self.once()

    async def once(self) -> None:
        """Integrate what is due; once in a thousand passes, forget old checkpoints."""
        try:
            await self._integrate.if_due(self._interval)
            if self._passes % 1000 == 0:
                await self._tree.forget_checkpoints(self._kept)
            self._passes += 1
        except AuditLogCorruptError:
            # Told by the alarm, once; it stays in the metric until an operator has looked.
            return
        except DomainError as error:
            _log.warning("integration.postponed", error=type(error).__name__)
