"""Holds whose time is over go to suspense; suspense whose day is over goes to the ledger; old records are forgotten."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import msgspec
import structlog

from metering.domain.accounts import PLATFORM
from metering.domain.enums import Payer
from metering.domain.errors import DependencyUnavailableError, RebuildingError
from metering.domain.ledger import platform_leg_id
from metering.ports import DueHold, HoldExpiry, Ledger
from metering.usecases.admission_gate import AdmissionGate
from servicekit.clock import Clock

_log = structlog.get_logger("metering.expire")


class ExpiryPace(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how much."""

    look: timedelta = timedelta(seconds=1)
    prune: timedelta = timedelta(minutes=5)
    # Of a partition in one look.
    holds_max: int = 200


class Expirer:
    """Moves on what is due in the partitions that this replica looks after."""

    def __init__(
        self,
        *,
        expiry: HoldExpiry,
        ledger: Ledger,
        gate: AdmissionGate,
        clock: Clock,
        partitions: Callable[[], list[int]],
        pace: ExpiryPace | None = None,
    ) -> None:
        """Use ports; `partitions` says which ones are this replica's."""
        self._expiry = expiry
        self._ledger = ledger
        self._gate = gate
        self._clock = clock
        self._partitions = partitions
        self._pace = pace or ExpiryPace()
        self._pruned_at = clock.monotonic()

    async def run(self, stop: asyncio.Event) -> None:
        """Look until asked to stop."""
        while not stop.is_set():
            try:
                await self.round()
            except (DependencyUnavailableError, RebuildingError) as error:
                _log.info("expire.waiting", reason=error.message)
            await self._clock.sleep(self._pace.look)

    async def round(self) -> int:
        """Move on what is due; return how many moved.

        Raises:
            DependencyUnavailableError: Redis or Postgres cannot be reached.
            RebuildingError: Counters are being rebuilt.
        """
        licence = self._gate.enter_to_finish()
        partitions = self._partitions()
        if not partitions:
            return 0
        due = await self._expiry.due(licence, partitions, count=self._pace.holds_max)
        moved = 0
        if due:
            payers = await self._expiry.expire(due, licence)
            moved = sum(payer is not None for payer in payers)
            await self._follow(due, payers)
        if self._clock.monotonic() - self._pruned_at >= self._pace.prune.total_seconds():
            self._pruned_at = self._clock.monotonic()
            await self._prune(partitions)
        return moved

    async def _follow(self, due: list[DueHold], payers: list[Payer | None]) -> None:
        """Move the platform's leg with the call's own."""
        legs = [
            DueHold(platform_leg_id(hold.reservation_id), PLATFORM)
            for hold, payer in zip(due, payers, strict=True)
            if payer is Payer.PLATFORM and hold.account != PLATFORM
        ]
        if legs:
            await self._expiry.expire(legs, self._gate.enter_to_finish(), follows=True)

    async def _prune(self, partitions: list[int]) -> None:
        licence = self._gate.enter_to_finish()
        # Only what Postgres has may go: from then on it is looked up there.
        before = await self._ledger.durable_times()
        pruned = await self._expiry.prune(licence, partitions, before_ms=before)
        await self._ledger.forget_answers(self._clock.now())
        _log.info("expire.pruned", buckets=pruned)
