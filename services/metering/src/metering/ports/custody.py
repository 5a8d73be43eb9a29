"""KeyVault's audit log as its witness reads it, and what was witnessed of it."""

from typing import Protocol

from metering.domain.custody import (
    AcceptedRestore,
    Contradiction,
    CustodyRecord,
    ListedCheckpoint,
    LogPage,
    WitnessedCheckpoint,
)


class CustodyLog(Protocol):
    """KeyVault's audit log. Every method raises DependencyUnavailableError when it cannot be read."""

    async def read(self, *, witnessed_size: int, after_index: int) -> LogPage | Contradiction:
        """Return the newest checkpoint, proved from a size; a contradiction when KeyVault finds its own log corrupt."""
        ...

    async def newest(self) -> ListedCheckpoint:
        """Return the newest checkpoint, and the keys that have signed checkpoints."""
        ...


class CustodyWitnesses(Protocol):
    """The one record that all replicas share. Every method raises DependencyUnavailableError."""

    async def read(self) -> CustodyRecord:
        """Return the record."""
        ...

    async def confirm(self, record: CustodyRecord, *, feed_index: int) -> None:
        """Note that the log was seen to continue the record's checkpoint just now."""
        ...

    async def advance(
        self, record: CustodyRecord, seen: WitnessedCheckpoint, *, verifier_keys: tuple[str, ...], feed_index: int
    ) -> bool:
        """Put a newer checkpoint in the place of the record's; False if the record has moved, which changes nothing."""
        ...

    async def trust(self, record: CustodyRecord, verifier_keys: tuple[str, ...]) -> bool:
        """Trust other keys from now on; False if the record has moved, which changes nothing."""
        ...

    async def contradict(self, record: CustodyRecord, contradiction: Contradiction) -> bool:
        """Roll back, unless a restore was accepted since the record was read; False if nothing was changed."""
        ...

    async def accept(
        self,
        record: CustodyRecord,
        restore: AcceptedRestore,
        *,
        accepted: WitnessedCheckpoint,
        verifier_keys: tuple[str, ...],
    ) -> bool:
        """Take a log as the new start, and keep who said so; False if the record has moved, which changes nothing."""
        ...

    async def is_accepted(self, request_id: str) -> bool:
        """Tell whether a restore was accepted under a request id."""
        ...
