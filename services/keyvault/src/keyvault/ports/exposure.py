"""What the search for exposed keys reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from keyvault.domain.audit_log import IndexedEntry

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class LeasePage:
    """Leases after an index, in order. `scanned_to` is how far the log was looked at; the head when nothing is left."""

    leases: Sequence[IndexedEntry]
    scanned_to: int


class ExposureLog(Protocol):
    """The log and the keys, as a search for what a breach exposed reads them.

    Every method raises UnavailableError when the store is away, and AuthorityForgedError when an entry cannot be read,
    or this service did not write it.
    """

    async def bounds(self) -> tuple[int, int]:
        """Return the first index that is kept and the last, or (1, 0) for an empty log."""
        ...

    async def time_at(self, audit_index: int) -> datetime:
        """Return when the entry at an index was made, or the next one that is there."""
        ...

    async def read_leases(self, after: int, *, up_to: int, limit: int) -> LeasePage:
        """Return leases among the next `limit` entries after an index, up to and with `up_to`."""
        ...

    async def key_ids(self, after: str, *, limit: int) -> list[str]:
        """Return ids of keys, revoked ones too, in order."""
        ...

    async def secret_times(self, provider_key_ids: Sequence[str]) -> dict[str, datetime]:
        """Return when the present secret of each key was stored, where the log says so in an entry to be believed."""
        ...
