"""Authority rows beside the entries of the log that wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from keyvault.domain.row_history import RowId, RowKind

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class RowState:
    """A present row: the entry that it says it was written by, and the newest one of it in the log, 0 for none."""

    row: RowId
    row_index: int
    newest_entry_index: int


@dataclass(frozen=True, slots=True)
class EntryState:
    """An authority entry, whether the row that it wrote is there, superseded or not, and whether its leaf is empty."""

    audit_index: int
    row: RowId
    is_row_there: bool
    is_blank: bool


class RowHistory(Protocol):
    """Rows and log, read in one snapshot. Every method raises UnavailableError when the store is away."""

    async def read_rows(self, kind: RowKind, after: str, limit: int) -> Sequence[RowState]:
        """Return the present rows of a kind after a name, in their order."""
        ...

    async def read_entries(self, after_index: int, limit: int) -> Sequence[EntryState]:
        """Return authority entries after an index, in their order."""
        ...
