"""The running self-audit: compares authority rows with the log, a few at a time.

A row that was rolled back is valid in itself, so nothing that reads rows refuses it; it is found here, by its index.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from keyvault.domain.row_history import RowFinding, RowId, RowKind, judge_entry, judge_row

if TYPE_CHECKING:
    from keyvault.ports import RowHistory
    from keyvault.usecases.report_corruption import ReportCorruption

_KINDS: Final = tuple(RowKind)


class _Part(enum.Enum):
    ROWS = enum.auto()
    ENTRIES = enum.auto()


class AuditRows:
    """Walks one batch at a time, and keeps what the last whole pass found."""

    def __init__(self, history: RowHistory, *, corruption: ReportCorruption, batch_max: int) -> None:
        """Compare what `history` reads."""
        self._history = history
        self._corruption = corruption
        self._batch_max = batch_max
        self._restart()
        self.found: dict[RowId, RowFinding] = {}
        self.passes = 0

    async def __call__(self) -> bool:
        """Compare a batch; return whether the pass goes on.

        Raises:
            UnavailableError: the store is away.
            AuditUnavailableError: a finding is not known to be durable; the batch is compared again.
        """
        if self._part is _Part.ROWS:
            await self._compare_rows()
            return True
        if await self._compare_entries():
            return True
        self.found = self._finding
        self.passes += 1
        self._restart()
        return False

    def _restart(self) -> None:
        self._part, self._kind, self._name, self._index = _Part.ROWS, 0, "", 0
        self._finding: dict[RowId, RowFinding] = {}

    async def _compare_rows(self) -> None:
        rows = await self._history.read_rows(_KINDS[self._kind], self._name, self._batch_max)
        for state in rows:
            finding = judge_row(row_index=state.row_index, newest_entry_index=state.newest_entry_index)
            await self._note(state.row, finding, state.row_index)
        # There is one set of halts, and no row after it.
        if len(rows) == self._batch_max and _KINDS[self._kind] is not RowKind.HALTS:
            self._name = rows[-1].row.name
        elif self._kind + 1 < len(_KINDS):
            self._kind, self._name = self._kind + 1, ""
        else:
            self._part = _Part.ENTRIES

    async def _compare_entries(self) -> bool:
        entries = await self._history.read_entries(self._index, self._batch_max)
        for state in entries:
            finding = judge_entry(is_row_there=state.is_row_there, is_blank=state.is_blank)
            await self._note(state.row, finding, state.audit_index)
        if entries:
            self._index = entries[-1].audit_index
        return len(entries) == self._batch_max

    async def _note(self, row: RowId, finding: RowFinding | None, audit_index: int) -> None:
        if finding is not None:
            self._finding[row] = finding
            await self._corruption.found(str(row), f"Row{finding.name.title().replace('_', '')}", audit_index)
