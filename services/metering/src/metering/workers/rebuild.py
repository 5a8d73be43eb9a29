"""Licences and the cold rebuild.

    renewed in Postgres, Redis is the one it names, every partition at its generation      → admit
    Redis has another identity, or a partition is not at its generation                    → loss

A loss is answered by whoever sees it first: it gives its licence back, becomes the rebuilder, waits until the licences
of all others have ended, drains what survived of the outbox, moves every partition to a new generation, puts holds,
suspense and recent operations back, and opens. Accounts are folded from the ledger when they are first asked for, so
that a rebuild takes no longer with more of them.
"""

import asyncio
from datetime import timedelta
from typing import Final

import msgspec
import structlog

from metering.domain.accounts import PARTITIONS
from metering.domain.errors import DependencyUnavailableError, EvictingStoreError, FencedFlushError
from metering.domain.licences import StoreIdentity
from metering.domain.reservations import HOUR_MS
from metering.ports import Ledger, Licences, StoreControl
from metering.usecases.admission_gate import AdmissionGate
from metering.workers.flush import Flusher
from servicekit.clock import Clock

_log = structlog.get_logger("metering.rebuild")

# Younger ids must be known to Redis; of older ones it asks Postgres. One hour past the end of the id's own.
_HORIZON: Final = timedelta(milliseconds=3 * HOUR_MS)


class LicencePace(msgspec.Struct, frozen=True, kw_only=True):
    """How long a licence lasts, and how often it is renewed."""

    life: timedelta = timedelta(seconds=30)
    renew: timedelta = timedelta(seconds=5)
    retry: timedelta = timedelta(milliseconds=200)
    # How much longer than a licence Postgres is taken to think it lasts: clocks that run apart.
    margin: timedelta = timedelta(seconds=1)
    memory_max: float = 0.8


class LicenceKeeper:
    """Keeps this replica's licence, and rebuilds when Redis was lost."""

    def __init__(  # noqa: PLR0913 (its ports; keyword-only)
        self,
        *,
        replica: str,
        licences: Licences,
        control: StoreControl,
        ledger: Ledger,
        flusher: Flusher,
        gate: AdmissionGate,
        clock: Clock,
        pace: LicencePace | None = None,
    ) -> None:
        """Use ports."""
        self._replica = replica
        self._licences = licences
        self._control = control
        self._ledger = ledger
        self._flusher = flusher
        self._gate = gate
        self._clock = clock
        self._pace = pace or LicencePace()
        self.rebuilds = 0
        self.rebuild_seconds = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the licence until asked to stop, then give it back."""
        while not stop.is_set():
            is_well = await self.round()
            await self._pause(self._pace.renew if is_well else self._pace.retry, stop)
        try:
            await self._licences.give_back(self._replica)
        except DependencyUnavailableError:
            _log.warning("licence.not_given_back")

    async def round(self) -> bool:
        """Renew or rebuild, once; tell whether this replica may admit."""
        self._gate.suspicion.clear()
        try:
            await self._control.ensure_keeps_everything()
            identity = await self._control.identity()
            if await self._renew(identity):
                await self._watch_memory()
                return True
            await self._handle_loss(identity)
        except DependencyUnavailableError as error:
            # Not a loss by itself: the licence in hand goes on until it ends.
            _log.warning("licence.waiting", dependency=str(error.facts.get("dependency", "")))
        except (FencedFlushError, EvictingStoreError) as error:
            _log.warning("licence.refused", reason=str(error))
            self._gate.close(is_rebuilding=True)
        return False

    async def _renew(self, identity: StoreIdentity) -> bool:
        before = self._clock.monotonic()
        life = self._pace.life + self._pace.margin
        licence = await self._licences.renew(self._replica, identity, life_ms=life // timedelta(milliseconds=1))
        if licence is None or not await self._control.is_open(licence):
            return False
        self._gate.open(licence, until=before + self._pace.life.total_seconds())
        return True

    async def _handle_loss(self, identity: StoreIdentity) -> None:
        self._gate.close(is_rebuilding=True)
        await self._licences.give_back(self._replica)
        state = await self._licences.state()
        is_first_start = state.identity is None
        life_ms = self._pace.life // timedelta(milliseconds=1)
        if not await self._licences.begin_rebuild(self._replica, epoch=state.epoch, life_ms=life_ms):
            return
        started = self._clock.monotonic()
        _log.warning("rebuild.begun", is_first_start=is_first_start, epoch=state.epoch)
        await self._wait_out_licences(epoch=state.epoch, life_ms=life_ms)
        drained = await self._drain()
        generations, seen_ms = await self._licences.begin_generation(self._replica)
        holds = await self._ledger.open_holds(range(PARTITIONS))
        operations = await self._ledger.recent_operations(since=self._clock.now() - _HORIZON)
        await self._control.restore(generations, seen_ms=seen_ms, operations=operations, holds=holds)
        # The connection may have been made again meanwhile, to yet another Redis.
        if await self._control.identity() != identity:
            return
        await self._licences.end_rebuild(self._replica, identity)
        self.rebuilds += 1
        self.rebuild_seconds = self._clock.monotonic() - started
        _log.warning(
            "rebuild.ended",
            seconds=round(self.rebuild_seconds, 3),
            drained_records=drained,
            holds=len(holds),
            operations=len(operations),
        )
        await self._renew(identity)
        await self._control.drop_other_generations(generations)

    async def _wait_out_licences(self, *, epoch: int, life_ms: int) -> None:
        """Wait until nobody can grant on the old history; renewals are refused since the rebuild began."""
        while await self._licences.unexpired() > 0:
            await self._clock.sleep(self._pace.retry)
            if not await self._licences.begin_rebuild(self._replica, epoch=epoch, life_ms=life_ms):
                raise FencedFlushError("another replica has taken the rebuild over")

    async def _drain(self) -> int:
        """Flush what survived of the old generation's outbox."""
        drained = 0
        while True:
            # Owning again raises the fences and reads the positions.
            owned = await self._licences.take_all_partitions(self._replica)
            flushed = await self._flusher.flush(owned)
            if flushed == 0:
                return drained
            drained += flushed

    async def _watch_memory(self) -> None:
        used = await self._control.memory_used()
        is_full = used >= self._pace.memory_max
        self._gate.fill("memory", f"Redis uses {used:.0%} of its memory" if is_full else "")

    async def _pause(self, delay: timedelta, stop: asyncio.Event) -> None:
        """Wait for a while, or until something looks wrong, or until asked to stop."""
        waits = [
            asyncio.ensure_future(self._clock.sleep(delay)),
            asyncio.ensure_future(self._gate.suspicion.wait()),
            asyncio.ensure_future(stop.wait()),
        ]
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for waiting in pending:
            waiting.cancel()
