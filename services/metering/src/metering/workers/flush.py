"""The flush: outbox records become ledger entries, once each.

One transaction holds everything of a round: the entries (an id that is there already is passed over), the sums from
entries really inserted, the holds, and the watermarks, which move only from where they were believed to be and only for
their owner. Records are trimmed after the commit, never before: dying in between repeats a round, and a repeated round
changes nothing.
"""

import asyncio
from collections import OrderedDict, defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from metering.domain.errors import DependencyUnavailableError, FencedFlushError
from metering.domain.licences import Watermark
from metering.domain.outbox import Advance, FlushFold, OutboxRecord
from metering.ports import Ledger, Licences, Outbox, OwnedPartition
from metering.usecases.admission_gate import AdmissionGate
from servicekit.clock import Clock

if TYPE_CHECKING:
    from metering.domain.accounts import AccountKey

_log = structlog.get_logger("metering.flush")

# Where the script puts the time among a record's numbers.
_NOW: Final = 0
# A replica that has not looked for so many times is taken for dead.
_MISSED_HEARTBEATS: Final = 3
_TOUCHED_MAX: Final = 10_000


class FlushPace(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how much."""

    busy: timedelta = timedelta(milliseconds=5)
    idle: timedelta = timedelta(milliseconds=50)
    own: timedelta = timedelta(seconds=2)
    retry: timedelta = timedelta(milliseconds=500)
    # Of a partition in one round.
    records_max: int = 2_000
    backlog_max: int = 200_000


class Flusher:
    """Flushes the partitions that this replica owns."""

    def __init__(  # noqa: PLR0913 (its ports; keyword-only)
        self,
        *,
        replica: str,
        outbox: Outbox,
        ledger: Ledger,
        licences: Licences,
        gate: AdmissionGate,
        clock: Clock,
        pace: FlushPace | None = None,
    ) -> None:
        """Use ports."""
        self._replica = replica
        self._outbox = outbox
        self._ledger = ledger
        self._licences = licences
        self._gate = gate
        self._clock = clock
        self._pace = pace or FlushPace()
        self._owned: dict[int, OwnedPartition] = {}
        self._owned_at = float("-inf")
        # A rebuild gives everything away, and begins other outboxes.
        self._owned_under: tuple[int, ...] = ()
        self.rows_written = 0
        # Accounts that something was written for lately, for whoever compares them with the ledger.
        self.touched: OrderedDict[AccountKey, None] = OrderedDict()
        self.backlog = 0

    @property
    def partitions(self) -> list[int]:
        """Return the partitions that this replica looks after."""
        return sorted(self._owned)

    async def run(self, stop: asyncio.Event) -> None:
        """Flush until asked to stop, and once more then."""
        while not stop.is_set():
            flushed = await self.round()
            # Records gather meanwhile: a transaction costs far more than a record. Only a round that left some goes on.
            is_behind = flushed >= self._pace.records_max
            await self._clock.sleep(self._pace.busy if is_behind else self._pace.idle)
        await self.round()

    async def round(self) -> int:
        """Flush once; return how many records went. What fails is tried again by the next round."""
        try:
            await self._refresh_ownership()
            if not self._gate_allows():
                return 0
            return await self._flush_owned()
        except FencedFlushError as error:
            _log.info("flush.fenced", reason=str(error))
            self._forget_ownership()
        except DependencyUnavailableError as error:
            _log.warning("flush.waiting", dependency=str(error.facts.get("dependency", "")))
            await self._clock.sleep(self._pace.retry)
        return 0

    async def _flush_owned(self) -> int:
        try:
            return await self.flush(list(self._owned.values()))
        except (FencedFlushError, DependencyUnavailableError):
            raise
        except Exception:  # noqa: BLE001 (whatever Postgres cannot take of one partition must not hold up the others)
            _log.exception("flush.failed")
        flushed = 0
        for each in list(self._owned.values()):
            try:
                flushed += await self.flush([each])
            except (FencedFlushError, DependencyUnavailableError):
                raise
            except Exception:  # noqa: BLE001 (as above)
                _log.exception("flush.partition_failed", partition=each.partition)
        await self._clock.sleep(self._pace.retry)
        return flushed

    async def flush(self, owned: list[OwnedPartition]) -> int:
        """Flush one round of these partitions; return how many records went.

        Raises:
            FencedFlushError: One of them is another replica's by now.
            DependencyUnavailableError: Redis or Postgres cannot be reached.
        """
        positions = [Watermark(each.partition, each.generation, each.sequence) for each in owned]
        records = await self._outbox.read(positions, count=self._pace.records_max)
        if not records:
            return 0
        fold = FlushFold()
        last: dict[int, OutboxRecord] = {}
        seen: dict[int, int] = defaultdict(int)
        for record in records:
            fold.add(record)
            self.touched[record.account] = None
            last[record.partition] = record
            seen[record.partition] = max(seen[record.partition], record.numbers[_NOW])
        while len(self.touched) > _TOUCHED_MAX:
            self.touched.popitem(last=False)
        by_partition = {each.partition: each for each in owned}
        advances = [
            Advance(
                partition,
                record.generation,
                by_partition[partition].fence,
                by_partition[partition].sequence,
                record.sequence,
                seen[partition],
            )
            for partition, record in sorted(last.items())
        ]
        self.rows_written += await self._ledger.commit(fold.batch(advances))
        for advance in advances:
            known = by_partition[advance.partition]
            if known.partition in self._owned:
                self._owned[known.partition] = msgspec.structs.replace(known, sequence=advance.to_sequence)
        await self._outbox.trim([Watermark(each.partition, each.generation, each.to_sequence) for each in advances])
        return len(records)

    async def watch_backlog(self) -> None:
        """Refuse reserves while this replica's partitions are too far behind."""
        positions = [Watermark(each.partition, each.generation, each.sequence) for each in self._owned.values()]
        backlog = await self._outbox.backlog(positions)
        self.backlog = sum(backlog.values())
        is_full = self.backlog >= self._pace.backlog_max
        self._gate.fill("backlog", "the ledger is too far behind" if is_full else "")

    def _gate_allows(self) -> bool:
        # While counters are rebuilt, the one that rebuilds drains.
        if self._gate.is_rebuilding:
            self._forget_ownership()
            return False
        return bool(self._owned)

    async def _refresh_ownership(self) -> None:
        now = self._clock.monotonic()
        licence = self._gate.licence
        generations = licence.generations if licence is not None else ()
        if now - self._owned_at < self._pace.own.total_seconds() and generations == self._owned_under:
            return
        self._owned_under = generations
        owned = await self._licences.own_partitions(self._replica, silent_after=_MISSED_HEARTBEATS * self._pace.own)
        self._owned = {each.partition: each for each in owned}
        self._owned_at = now
        if self._owned:
            await self.watch_backlog()

    def _forget_ownership(self) -> None:
        self._owned = {}
        self._owned_at = float("-inf")
