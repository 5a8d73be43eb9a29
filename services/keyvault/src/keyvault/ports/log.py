"""The audit log, and the feed of what changes authority."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from keyvault.domain.audit_log import AuditEntry, IndexedEntry


class AuditLog(Protocol):
    """The log itself."""

    async def append(self, entries: Sequence[AuditEntry]) -> int:
        """Append entries that change no authority, durably; return the index of the first.

        Raises:
            AuditUnavailableError: it is not known to be durable.
        """
        ...


@dataclass(frozen=True, slots=True)
class AuthorityChanges:
    """Changes of authority after an index, oldest first, and the head of the log in the same snapshot.

    When `is_complete` is false, there are more between the last of these and `head`.
    """

    head: int
    changes: Sequence[IndexedEntry]
    is_complete: bool


class AuthorityFeed(Protocol):
    """Changes of authority as they are appended, by any replica."""

    async def head(self) -> int:
        """Return the index of the last audit entry, from the primary. Raises UnavailableError when it is away."""
        ...

    async def read_changes(self, after: int, *, limit: int) -> AuthorityChanges:
        """Return changes after an index, from the primary.

        Raises:
            UnavailableError: it is away.
            AuthorityForgedError: an entry cannot be read.
        """
        ...

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` when another change may have been appended; a call may be missed, so poll as well."""
        ...
