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


class CorruptionLog(Protocol):
    """What was found to be corrupt, once for each row and finding."""

    async def append_corruption(self, row_id: str, what: str, row_index: int, entry: AuditEntry) -> bool:
        """Append the entry durably, unless this was said of the row at this index before; return whether it was new.

        Raises:
            AuditUnavailableError: it is not known to be durable.
        """
        ...


@dataclass(frozen=True, slots=True)
class UntoldChange:
    """A change of authority of which nobody can say what it was, so that everything granted below its index has ended.

    Its entry cannot be read (`is_corrupt`), or is no longer kept; then it stands for all that are not, up to its index.
    """

    audit_index: int
    is_corrupt: bool


@dataclass(frozen=True, slots=True)
class AuthorityChanges:
    """Changes of authority after an index, oldest first, and the head of the log in the same snapshot.

    When `is_complete` is false, there are more between the last of these and `head`.
    """

    head: int
    changes: Sequence[IndexedEntry | UntoldChange]
    is_complete: bool


class AuthorityFeed(Protocol):
    """Changes of authority as they are appended, by any replica."""

    async def head(self) -> int:
        """Return the index of the last audit entry, from the primary. Raises UnavailableError when it is away."""
        ...

    async def read_changes(self, after: int, *, limit: int) -> AuthorityChanges:
        """Return changes after an index, from the primary.

        What cannot be told is an `UntoldChange`: never an error, which would keep all watchers from going on, and never
        passed over.

        Raises:
            UnavailableError: it is away.
        """
        ...

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` when another change may have been appended; a call may be missed, so poll as well."""
        ...
