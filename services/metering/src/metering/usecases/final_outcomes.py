"""The outcome of a closed operation, to be given again."""

from datetime import datetime, timedelta

import msgspec

from metering.domain.accounts import AccountKey, partition_of
from metering.domain.enums import Payer
from metering.domain.errors import DependencyUnavailableError, RebuildingError
from metering.domain.ledger import LedgerEntry
from metering.domain.licences import Licence
from metering.ports import Ledger
from servicekit.clock import Clock


class FinalOutcome(msgspec.Struct, frozen=True):
    """What an operation consumed over all its calls, and its answer while it is kept."""

    entries: tuple[LedgerEntry, ...]
    sealed_answer: bytes
    settle_time: datetime
    payer: Payer


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """How long an outcome that is not durable yet is waited for."""

    at_most: timedelta = timedelta(seconds=2)
    poll: timedelta = timedelta(milliseconds=10)


class FinalOutcomes:
    """Reads outcomes from the ledger, as soon as it has them."""

    def __init__(self, *, ledger: Ledger, clock: Clock, waiting: Waiting | None = None) -> None:
        """Use a ledger."""
        self._ledger = ledger
        self._clock = clock
        self._waiting = waiting or Waiting()

    async def read(
        self, request_id: str, account: AccountKey, licence: Licence, *, sequence: int, attempts: int
    ) -> FinalOutcome:
        """Return the outcome of an operation that was closed at a sequence.

        Raises:
            RebuildingError: The partition's history has changed.
            DependencyUnavailableError: Postgres cannot be reached, or is too far behind.
        """
        await self._wait_for(account, licence, sequence)
        entries, sealed_answer = await self._ledger.outcome(request_id, account, attempts)
        if not entries:
            raise RebuildingError("The outcome is not in the ledger yet; retry soon.")
        last = max(entries, key=lambda entry: (entry.facts.is_final, entry.settle_time))
        return FinalOutcome(tuple(entries), sealed_answer, last.settle_time, last.payer)

    async def _wait_for(self, account: AccountKey, licence: Licence, sequence: int) -> None:
        if sequence < 0:
            return
        partition = partition_of(account)
        end = self._clock.monotonic() + self._waiting.at_most.total_seconds()
        while True:
            watermark = (await self._ledger.watermarks())[partition]
            if watermark.generation != licence.generations[partition]:
                raise RebuildingError("Redis was replaced meanwhile; retry soon.")
            if watermark.sequence >= sequence:
                return
            if self._clock.monotonic() >= end:
                raise DependencyUnavailableError("The ledger is behind; retry soon.", dependency="postgres")
            await self._clock.sleep(self._waiting.poll)
