"""Reads KeyVault's audit log as its witness, and keeps the gate at what all replicas know of it."""

import asyncio
from datetime import timedelta

import msgspec
import structlog

from metering.domain.custody import CustodyState
from metering.domain.errors import DependencyUnavailableError
from metering.usecases.witness_custody import Finding, WitnessCustody
from servicekit.clock import Clock

_log = structlog.get_logger("metering.witness")


class WitnessPace(msgspec.Struct, frozen=True, kw_only=True):
    """How often to look and to read, and after how long without a log that can be read an alarm is raised."""

    look: timedelta = timedelta(milliseconds=500)
    read: timedelta = timedelta(seconds=1)
    alarm: timedelta = timedelta(seconds=60)


class Witness:
    """Two loops, so that a KeyVault that does not answer keeps nobody from hearing what another replica found."""

    def __init__(self, *, custody: WitnessCustody, clock: Clock, pace: WitnessPace | None = None) -> None:
        """Drive a use case."""
        self._custody = custody
        self._clock = clock
        self._pace = pace or WitnessPace()
        self._alarm_at = clock.monotonic() + self._pace.alarm.total_seconds()
        self._is_readable = True
        self._is_admitting = True

    async def watch(self, stop: asyncio.Event) -> None:
        """Follow the record until asked to stop."""
        while not stop.is_set():
            try:
                self._tell((await self._custody.look()).state)
            except DependencyUnavailableError:
                _log.info("custody.not_looked_at")
            await self._clock.sleep(self._pace.look)

    async def run(self, stop: asyncio.Event) -> None:
        """Read the log until asked to stop."""
        while not stop.is_set():
            await self._clock.sleep(await self.round())

    async def round(self) -> timedelta:
        """Read the log once; return when to read it again."""
        try:
            finding = await self._custody.read_log()
        except DependencyUnavailableError as error:
            if self._is_readable:
                _log.warning("custody.not_read", reason=error.message)
            self._is_readable = False
            self._raise_alarm()
            return error.retry_after or self._pace.read
        self._is_readable = True
        record = self._custody.record
        if finding is Finding.ROLLED_BACK and record.contradiction is not None:
            _log.error(
                "custody.rolled_back",
                witnessed_size=record.size,
                witnessed_checkpoint=record.held.note if record.held else "",
                contradicting_checkpoint=record.contradiction.checkpoint,
                reason=record.contradiction.description,
            )
        self._alarm_at = self._clock.monotonic() + self._pace.alarm.total_seconds()
        return self._pace.read

    def _raise_alarm(self) -> None:
        """Say, once an interval, that the log could not be read for too long."""
        now = self._clock.monotonic()
        if now >= self._alarm_at:
            self._alarm_at = now + self._pace.alarm.total_seconds()
            _log.error("custody.witness_is_old", age_seconds=round(self._custody.age_seconds))

    def _tell(self, state: CustodyState) -> None:
        is_admitting = state is not CustodyState.ROLLED_BACK
        if is_admitting != self._is_admitting:
            self._is_admitting = is_admitting
            _log.warning("custody.admission_resumed" if is_admitting else "custody.admission_stopped")
