"""The truth, and who may write to it."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from metering.domain.accounts import AccountKey
from metering.domain.ledger import LedgerEntry
from metering.domain.licences import Licence, StoreIdentity, Watermark
from metering.domain.limits import Limit
from metering.domain.outbox import FlushBatch, OpenHold
from metering.domain.reservations import PriorOperation
from metering.domain.usage import UsageQuery, UsageSummary


class Ledger(Protocol):
    """The truth. Every method raises DependencyUnavailableError."""

    async def commit(self, batch: FlushBatch) -> int:
        """Write a batch in one transaction and return how many entries were new.

        Raises:
            FencedFlushError: A partition is another's by now, or has moved.
        """
        ...

    async def watermarks(self) -> list[Watermark]:
        """Return how far each partition is."""
        ...

    async def fold(self, account: AccountKey, limits: Sequence[tuple[Limit, int, int]]) -> list[int]:
        """Return what each limit's window, between these minutes, counts in the ledger, posted suspense included."""
        ...

    async def find_operation(self, request_id: str, account: AccountKey) -> PriorOperation | None:
        """Return what is known of an operation."""
        ...

    async def outcome(self, request_id: str, account: AccountKey, attempts: int) -> tuple[list[LedgerEntry], bytes]:
        """Return the settlements of a closed operation and the sealed answer, if it is still kept."""
        ...

    async def summarize(self, query: UsageQuery) -> UsageSummary:
        """Sum the ledger, with what is held and in suspense."""
        ...

    async def list_entries(self, query: UsageQuery, *, after: str, count: int) -> list[LedgerEntry]:
        """Return entries, newest first, those after a position."""
        ...

    async def open_holds(self, partitions: Sequence[int]) -> list[OpenHold]:
        """Return holds and suspense of partitions."""
        ...

    async def recent_operations(self, *, since: datetime) -> list[PriorOperation]:
        """Return operations with entries whose ids were made since a time."""
        ...

    async def durable_times(self) -> dict[int, int]:
        """Return up to which time (ms) each partition's records are in the ledger."""
        ...

    async def prepare_partitions(self, now: datetime) -> None:
        """Make the tables that the ids of the next weeks go into."""
        ...

    async def forget_answers(self, now: datetime) -> None:
        """Delete answers that are kept no longer."""
        ...


class StoreState(msgspec.Struct, frozen=True):
    """What Postgres says of Redis."""

    identity: StoreIdentity | None
    generations: tuple[int, ...]
    # Counts rebuilds: whoever finds Redis lost names the epoch in which it looked.
    epoch: int
    is_rebuilding: bool


class OwnedPartition(msgspec.Struct, frozen=True):
    """A partition that this replica flushes, under a fence that rises with every change of owner."""

    partition: int
    generation: int
    fence: int
    sequence: int


class Licences(Protocol):
    """Licences, generations and owners of partitions. Every method raises DependencyUnavailableError."""

    async def state(self) -> StoreState:
        """Return what Redis should be."""
        ...

    async def renew(self, replica: str, identity: StoreIdentity, *, life_ms: int) -> Licence | None:
        """Renew a licence on an identity; None when that is not the one in force."""
        ...

    async def give_back(self, replica: str) -> None:
        """End this replica's licence now, so that a rebuild does not wait for it."""
        ...

    async def begin_rebuild(self, replica: str, *, epoch: int, life_ms: int) -> bool:
        """Become, or stay, the one that rebuilds; False while another replica does, or if the epoch has passed."""
        ...

    async def take_all_partitions(self, replica: str) -> list["OwnedPartition"]:
        """Own every partition, fencing every flusher.

        Raises:
            FencedFlushError: Another replica has taken the rebuild over.
        """
        ...

    async def unexpired(self) -> int:
        """Return how many licences still run."""
        ...

    async def begin_generation(self, replica: str) -> tuple[dict[int, int], dict[int, int]]:
        """Move every partition to a new generation and the store to a new epoch; return generations, times seen (ms).

        Raises:
            FencedFlushError: Another replica has taken the rebuild over.
        """
        ...

    async def end_rebuild(self, replica: str, identity: StoreIdentity) -> None:
        """Open admission on an identity.

        Raises:
            FencedFlushError: Another replica has taken the rebuild over.
        """
        ...

    async def own_partitions(self, replica: str, *, silent_after: timedelta) -> list[OwnedPartition]:
        """Take this replica's share of partitions, leave what is too much, and return what it owns.

        Replicas that have not asked for so long own nothing any more; whatever they still believe, they are fenced.
        """
        ...
