"""Records callers that were refused after the handshake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.errors import AuditUnavailableError

if TYPE_CHECKING:
    from datetime import timedelta

    from keyvault.ports import AuditLog
    from servicekit.clock import Clock


class RecordRefusal:
    """Appends one entry for the refusals of one caller at one RPC."""

    def __init__(self, log: AuditLog, clock: Clock, *, retry: timedelta) -> None:
        """Append to `log`, trying again after `retry` while it is away."""
        self._log = log
        self._clock = clock
        self._retry = retry

    async def __call__(self, *, caller: str, rpc: str, count: int) -> None:
        """Append the entry, however long the log is away: a refusal is not to be forgotten for that.

        An append whose answer was lost may have happened, and then the entry is there twice: too many is the safe side.
        """
        entry = AuditEntry(
            kind=EntryKind.CALLER_REFUSED,
            time=self._clock.now(),
            caller=caller,
            details=(("rpc", rpc), ("count", str(count))),
        )
        while True:
            try:
                await self._log.append([entry])
            except AuditUnavailableError:
                await self._clock.sleep(self._retry)
            else:
                return
