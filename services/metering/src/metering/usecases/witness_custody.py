"""Witnessing KeyVault's audit log, and stopping admission when it contradicts what was witnessed.

What cannot be read stops nothing: KeyVault away, a slow feed and a log that is no longer signed are alarms. What was
read and contradicts stops everything, on every replica, until an operator accepts it.
"""

import asyncio
from datetime import timedelta
from enum import Enum

import msgspec

from metering.domain.custody import (
    Contradiction,
    CustodyRecord,
    CustodyState,
    ListedCheckpoint,
    LogPage,
    is_signed_by_others,
    judge,
    signing_keys,
    vouched_keys,
)
from metering.domain.errors import DependencyUnavailableError
from metering.ports import CustodyLog, CustodyWitnesses
from metering.usecases.admission_gate import AdmissionGate
from servicekit.clock import Clock


class CustodyPace(msgspec.Struct, frozen=True, kw_only=True):
    """How often the log is read, by any of the replicas."""

    read: timedelta = timedelta(seconds=1)


class Finding(Enum):
    """What came of reading the log."""

    NOTHING = "nothing"
    CONFIRMED = "confirmed"
    WITNESSED = "witnessed"
    ROLLED_BACK = "rolled_back"


class WitnessCustody:
    """Keeps the newest checkpoint, and the gate at what all replicas know."""

    def __init__(
        self,
        *,
        witnesses: CustodyWitnesses,
        log: CustodyLog,
        gate: AdmissionGate,
        clock: Clock,
        pinned_keys: tuple[str, ...] = (),
        pace: CustodyPace | None = None,
    ) -> None:
        """Use ports; `pinned_keys`, if any, are the only ones trusted."""
        self._witnesses = witnesses
        self._log = log
        self._gate = gate
        self._clock = clock
        self._pinned = pinned_keys
        self._pace = pace or CustodyPace()
        # Two who look at once must not leave behind what the slower one read.
        self._looking = asyncio.Lock()
        self._looked_at = clock.monotonic()
        self._stopped_epoch = -1
        self.record = CustodyRecord()

    @property
    def age_seconds(self) -> float:
        """Return how long ago KeyVault last showed a log that continues what was witnessed; 0 if it never did."""
        if self.record.age is None:
            return 0.0
        return self.record.age.total_seconds() + self._clock.monotonic() - self._looked_at

    async def look(self) -> CustodyRecord:
        """Read what all replicas know, and open or stop admission by it.

        Raises:
            DependencyUnavailableError: Postgres cannot be reached.
        """
        async with self._looking:
            self.record = await self._witnesses.read()
            self._looked_at = self._clock.monotonic()
            # What was found here counts until an operator has spoken, also if it could not be written down.
            is_rolled_back = self.record.state is CustodyState.ROLLED_BACK or self.record.epoch == self._stopped_epoch
            self._gate.note_custody(rolled_back_size=self.record.size if is_rolled_back else None)
            return self.record

    async def read_log(self) -> Finding:
        """Read the log if no replica has within the pace, and keep or contradict what was witnessed.

        Raises:
            DependencyUnavailableError: KeyVault's log cannot be read, or Postgres cannot be reached.
        """
        record = await self.look()
        is_just_read = record.age is not None and record.age < self._pace.read / 2
        if record.state is CustodyState.ROLLED_BACK or is_just_read:
            return Finding.NOTHING
        keys = await self._trusted_keys(record)
        page = await self._read(record)
        if isinstance(page, Contradiction):
            return await self._contradict(record, page)
        if record.held is None and not page.checkpoint:
            # A log that has not begun.
            return Finding.NOTHING
        verdict = judge(record.held, page, trusted_keys=keys)
        if isinstance(verdict, Contradiction):
            return await self._contradict(record, verdict)
        keys = await self._vouched_keys(keys, page)
        if verdict.size == record.size and record.held is not None:
            await self._witnesses.confirm(record, feed_index=page.next_after_index)
            if keys != record.verifier_keys and not self._pinned:
                await self._witnesses.trust(record, keys)
            return Finding.CONFIRMED
        is_newest = await self._witnesses.advance(record, verdict, verifier_keys=keys, feed_index=page.next_after_index)
        return Finding.WITNESSED if is_newest else Finding.NOTHING

    async def _trusted_keys(self, record: CustodyRecord) -> tuple[str, ...]:
        if self._pinned:
            return self._pinned
        # On first use, whatever signs; afterwards what those vouch for.
        return record.verifier_keys if record.held is not None else signing_keys(await self._log.newest())

    async def _vouched_keys(self, keys: tuple[str, ...], page: LogPage) -> tuple[str, ...]:
        if self._pinned or not is_signed_by_others(page.checkpoint, keys):
            return keys
        listed = await self._log.newest()
        return vouched_keys(keys, ListedCheckpoint(page.checkpoint, listed.verifier_keys))

    async def _read(self, record: CustodyRecord) -> LogPage | Contradiction:
        page = await self._log.read(witnessed_size=record.size, after_index=record.feed_index)
        if not _is_excused(record, page):
            return page
        # Past the entries that owners would be told of: perhaps only one of those cannot be read.
        page = await self._log.read(witnessed_size=record.size, after_index=record.size)
        if _is_excused(record, page):
            error = DependencyUnavailableError(
                f"KeyVault's audit log is corrupt at index {record.excused_index}, which an operator has accepted.",
                dependency="keyvault",
            )
            error.retry_after = self._pace.read
            raise error
        return page

    async def _contradict(self, record: CustodyRecord, contradiction: Contradiction) -> Finding:
        self._stopped_epoch = record.epoch
        self._gate.note_custody(rolled_back_size=record.size)
        is_found = await self._witnesses.contradict(record, contradiction)
        await self.look()
        return Finding.ROLLED_BACK if is_found else Finding.NOTHING


def _is_excused(record: CustodyRecord, page: LogPage | Contradiction) -> bool:
    return isinstance(page, Contradiction) and 0 < page.corrupt_index == record.excused_index
