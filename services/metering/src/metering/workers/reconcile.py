"""Reconciliation: what Redis counts is compared with what the ledger has, all the time. Drift must be 0.

An account is compared when it is at rest: everything written for it is in the ledger, and nothing was written while it
was compared. One that is never at rest is never compared, and is told of by its absence from the count.
"""

import asyncio
from collections import OrderedDict
from datetime import timedelta

import msgspec
import structlog

from metering.domain.accounts import AccountKey, partition_of
from metering.domain.errors import DependencyUnavailableError, RebuildingError
from metering.domain.licences import Licence
from metering.ports import AccountReading, CounterStore, Ledger, Limits
from metering.usecases.admission_gate import AdmissionGate
from servicekit.clock import Clock

_log = structlog.get_logger("metering.reconcile")


class ReconcilePace(msgspec.Struct, frozen=True, kw_only=True):
    """How often, and how many accounts at a time."""

    look: timedelta = timedelta(seconds=10)
    accounts_max: int = 50


class Reconciler:
    """Compares accounts that something was written for lately."""

    def __init__(  # noqa: PLR0913 (its ports; keyword-only)
        self,
        *,
        counters: CounterStore,
        ledger: Ledger,
        limits: Limits,
        gate: AdmissionGate,
        clock: Clock,
        touched: OrderedDict[AccountKey, None],
        pace: ReconcilePace | None = None,
    ) -> None:
        """Use ports; `touched` names the accounts, and loses those that were compared."""
        self._counters = counters
        self._ledger = ledger
        self._limits = limits
        self._gate = gate
        self._clock = clock
        self._touched = touched
        self._pace = pace or ReconcilePace()
        self.compared = 0
        self.drifted = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Compare until asked to stop."""
        while not stop.is_set():
            try:
                await self.round()
            except (DependencyUnavailableError, RebuildingError):
                _log.info("reconcile.waiting")
            await self._clock.sleep(self._pace.look)

    async def round(self) -> int:
        """Compare some accounts; return how many limits drifted.

        Raises:
            RebuildingError: Counters are being rebuilt.
            DependencyUnavailableError: Redis or Postgres cannot be reached.
        """
        licence = self._gate.enter_to_finish()
        drifted = 0
        for account in list(self._touched)[: self._pace.accounts_max]:
            drifts = await self._compare(account, licence)
            if drifts is None:
                # Not at rest: last in line.
                self._touched.move_to_end(account)
                continue
            self._touched.pop(account, None)
            self.compared += 1
            for limit_id, drift in drifts.items():
                drifted += 1
                _log.error("counters.drifted", account=account, limit_id=limit_id, drift=drift)
        self.drifted += drifted
        return drifted

    async def _compare(self, account: AccountKey, licence: Licence) -> dict[str, int] | None:
        before = await self._counters.read(account, licence)
        if not isinstance(before, AccountReading):
            # Not loaded, or its day is over: nothing is counted on until it is asked for again.
            return {}
        partition = partition_of(account)
        watermark = (await self._ledger.watermarks())[partition]
        if watermark.generation != licence.generations[partition] or watermark.sequence < before.sequence:
            return None
        known = {limit.limit_id: limit for limit in await self._limits.list_limits(account)}
        readings = [each for each in before.counters if each.limit_id in known]
        folded = await self._ledger.fold(account, [(known[each.limit_id], each.start, each.end) for each in readings])
        after = await self._counters.read(account, licence)
        if not isinstance(after, AccountReading) or (after.sequence, after.version) != (
            before.sequence,
            before.version,
        ):
            return None
        counted = [each.counted - each.held - each.suspense for each in readings]
        return {
            each.limit_id: have - should
            for each, have, should in zip(readings, counted, folded, strict=True)
            if have != should
        }
