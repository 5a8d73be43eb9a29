"""Records callers that were refused after the handshake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyvault.domain.audit_log import AuditEntry, EntryKind

if TYPE_CHECKING:
    from keyvault.ports import AuditLog
    from servicekit.clock import Clock


class RecordRefusal:
    """Appends one entry for the refusals of one caller at one RPC."""

    def __init__(self, log: AuditLog, clock: Clock) -> None:
        """Append to `log`."""
        self._log = log
        self._clock = clock

    async def __call__(self, *, caller: str, rpc: str, count: int) -> None:
        """Append the entry. Raises AuditUnavailableError when it is not known to be durable."""
        entry = AuditEntry(
            kind=EntryKind.CALLER_REFUSED,
            time=self._clock.now(),
            caller=caller,
            details=(("rpc", rpc), ("count", str(count))),
        )
        await self._log.append([entry])
