"""Reports stored bytes that fail authentication, or are not what the log wrote last.

The operator is told every time; the log once for each row and error, whoever meets it and however often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import AuditEntry, EntryKind

if TYPE_CHECKING:
    from keyvault.ports import Alarms, CorruptionLog
    from servicekit.clock import Clock
    from servicekit.errors import DomainError

REMEMBERED_ROWS_MAX: Final = 1024


class ReportCorruption:
    """Tells the log and the operator."""

    def __init__(self, log: CorruptionLog, *, alarms: Alarms, clock: Clock, reporter: str) -> None:
        """Report as `reporter`, the name of this service in the log."""
        self._log = log
        self._alarms = alarms
        self._clock = clock
        self._reporter = reporter
        self._reported: set[tuple[str, str, int]] = set()

    async def __call__(self, row_id: str, error: DomainError) -> None:
        """Report that the row of this key or agent failed with `error`.

        Raises:
            AuditUnavailableError: the entry is not known to be durable.
        """
        await self.found(row_id, type(error).__name__, int(error.facts.get("audit_index", 0)))

    async def found(self, row_id: str, what: str, row_index: int) -> None:
        """Report what is wrong with a row that says that it was written at `row_index`.

        A row is met again and again, and a log that grew with every time would be a way to fill the disk.

        Raises:
            AuditUnavailableError: the entry is not known to be durable.
        """
        self._alarms.corruption_found(row_id, what)
        finding = (row_id, what, row_index)
        if finding in self._reported or len(self._reported) >= REMEMBERED_ROWS_MAX:
            return
        details = (("row_id", row_id), ("error", what), ("audit_index", str(row_index or "")))
        entry = AuditEntry(
            kind=EntryKind.CORRUPTION_FOUND, time=self._clock.now(), caller=self._reporter, details=details
        )
        await self._log.append_corruption(row_id, what, row_index, entry)
        self._reported.add(finding)
