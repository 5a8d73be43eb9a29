"""Reports stored bytes that fail authentication: to the log once per row and process, to the operator every time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import AuditEntry, EntryKind

if TYPE_CHECKING:
    from keyvault.ports import Alarms, AuditLog
    from servicekit.clock import Clock
    from servicekit.errors import DomainError

REMEMBERED_ROWS_MAX: Final = 1024


class ReportCorruption:
    """Tells the log and the operator."""

    def __init__(self, log: AuditLog, *, alarms: Alarms, clock: Clock, reporter: str) -> None:
        """Report as `reporter`, the name of this service in the log."""
        self._log = log
        self._alarms = alarms
        self._clock = clock
        self._reporter = reporter
        self._reported: set[tuple[str, str]] = set()

    async def __call__(self, row_id: str, error: DomainError) -> None:
        """Report that the row of this key or agent failed with `error`.

        A row is asked for again and again, and a log that grew with every try would be a way to fill the disk.

        Raises:
            AuditUnavailableError: the entry is not known to be durable.
        """
        what = type(error).__name__
        self._alarms.corruption_found(row_id, what)
        if (row_id, what) in self._reported or len(self._reported) >= REMEMBERED_ROWS_MAX:
            return
        details = (("row_id", row_id), ("error", what), ("audit_index", str(error.facts.get("audit_index", ""))))
        entry = AuditEntry(
            kind=EntryKind.CORRUPTION_FOUND, time=self._clock.now(), caller=self._reporter, details=details
        )
        await self._log.append([entry])
        self._reported.add((row_id, what))
