"""Holds and settlements, and the store that they are in."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from metering.domain.accounts import AccountKey
from metering.domain.enums import Payer
from metering.domain.licences import Licence, StoreIdentity, Watermark
from metering.domain.outbox import OpenHold, OutboxRecord
from metering.domain.reservations import (
    ExtendCommand,
    ExtendOutcome,
    LookupCommand,
    LookupOutcome,
    PriorOperation,
    ReleaseCommand,
    ReleaseOutcome,
    ReserveCommand,
    ReserveOutcome,
    SettleCommand,
    SettleOutcome,
)
from servicekit.errors import DomainError


class History(msgspec.Struct, frozen=True):
    """What Postgres was found to know of an operation; `operation` is None if nothing."""

    operation: PriorOperation | None


class AdmissionStore(Protocol):
    """Holds, settlements, releases: each command is one atomic step.

    Outcomes come in the order of the commands. An outcome that is an error says that it is not known whether that
    command was applied; repeating it is safe. Every method raises DependencyUnavailableError when nothing of the batch
    was applied.
    """

    async def reserve(
        self, commands: Sequence[ReserveCommand], licence: Licence, *, histories: Mapping[int, History] | None = None
    ) -> list[ReserveOutcome | DomainError]:
        """Hold the worst case of each call on every limit that applies; `histories` by index, where asked for."""
        ...

    async def settle(
        self, commands: Sequence[SettleCommand], licence: Licence, *, histories: Mapping[int, History] | None = None
    ) -> list[SettleOutcome | DomainError]:
        """Put the truth in the place of each hold."""
        ...

    async def release(self, commands: Sequence[ReleaseCommand], licence: Licence) -> list[ReleaseOutcome | DomainError]:
        """Give holds back."""
        ...

    async def extend(self, commands: Sequence[ExtendCommand], licence: Licence) -> list[ExtendOutcome | DomainError]:
        """Keep holds longer."""
        ...

    async def lookup(self, command: LookupCommand, licence: Licence) -> LookupOutcome:
        """Tell how far an operation has come."""
        ...


class Outbox(Protocol):
    """What scripts wrote and Postgres does not have yet. Every method raises DependencyUnavailableError."""

    async def read(self, positions: Sequence[Watermark], *, count: int) -> list[OutboxRecord]:
        """Return records after each position, at most `count` a partition, in order of sequence."""
        ...

    async def trim(self, positions: Sequence[Watermark]) -> None:
        """Forget records up to each position."""
        ...

    async def backlog(self, positions: Sequence[Watermark]) -> dict[int, int]:
        """Return how many records each partition has after its position."""
        ...


class DueHold(msgspec.Struct, frozen=True):
    """A hold that may be due."""

    reservation_id: str
    account: AccountKey


class HoldExpiry(Protocol):
    """Holds whose time is over. Every method raises DependencyUnavailableError."""

    async def due(self, licence: Licence, partitions: Sequence[int], *, count: int) -> list[DueHold]:
        """Return holds that are due, at most `count` a partition."""
        ...

    async def expire(self, holds: Sequence[DueHold], licence: Licence, *, follows: bool = False) -> list[Payer | None]:
        """Move each hold on, and return who pays for it if it moved; `follows` also moves one that is not due yet."""
        ...

    async def prune(self, licence: Licence, partitions: Sequence[int], *, before_ms: Mapping[int, int]) -> int:
        """Forget operation records that nothing wrote to since a time, and whose hour is over since before it."""
        ...


class StoreControl(Protocol):
    """The store as a whole. Every method raises DependencyUnavailableError."""

    async def identity(self) -> StoreIdentity:
        """Return whom the connection is to."""
        ...

    async def ensure_keeps_everything(self) -> None:
        """Check that the server never evicts keys on its own.

        Raises:
            EvictingStoreError: Its eviction policy is another than noeviction.
        """
        ...

    async def memory_used(self) -> float:
        """Return the part of the allowed memory that is in use; 0 without a bound."""
        ...

    async def is_open(self, licence: Licence) -> bool:
        """Tell whether every partition is at its generation."""
        ...

    async def restore(
        self,
        generations: Mapping[int, int],
        *,
        seen_ms: Mapping[int, int],
        operations: Sequence[PriorOperation],
        holds: Sequence[OpenHold],
    ) -> None:
        """Put holds and operation records of new generations in place, then begin these generations."""
        ...

    async def drop_other_generations(self, generations: Mapping[int, int]) -> None:
        """Delete what other generations left behind."""
        ...
