"""RewrapKeys: asks for a pass, sets its pace, and tells how far it has come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.new_keys import refused

if TYPE_CHECKING:
    from keyvault.domain.rewrap import Rewrap
    from keyvault.ports import AuditLog
    from keyvault.ports.rewrap import RewrapStore
    from servicekit.clock import Clock


class FollowRewrap:
    """Asks `keyvault rewrap`, a process of its own, for work, through the database."""

    def __init__(self, *, store: RewrapStore, log: AuditLog, clock: Clock) -> None:
        """Ask through `store`, and record in `log` who asked."""
        self._store = store
        self._log = log
        self._clock = clock

    async def __call__(
        self, *, caller: str, actor: str, start: bool, keys_per_second_max: int, pause: bool | None
    ) -> Rewrap:
        """Return how the pass stands, after what was asked.

        Raises:
            InvalidArgumentError: the pace is negative, or nobody is named who asks.
            AuditUnavailableError: it is not known to be durable who asked.
            UnavailableError: the store is away.
        """
        if keys_per_second_max < 0:
            raise refused("keys_per_second_max", "OUT_OF_RANGE", "Send 0 to leave it, or a number of secrets a second.")
        if start or keys_per_second_max or pause is not None:
            if not actor:
                raise refused("actor", "REQUIRED", "Name the person or service that asks, for the audit log.")
            details = {
                "change": "rewrap",
                "start": str(start).lower(),
                "keys_per_second_max": str(keys_per_second_max),
                "pause": "" if pause is None else str(pause).lower(),
            }
            entry = AuditEntry(
                kind=EntryKind.KEYRING_CHANGED,
                time=self._clock.now(),
                caller=caller,
                actor=actor,
                details=tuple(details.items()),
            )
            await self._log.append([entry])
            await self._store.ask(start=start, keys_per_second_max=keys_per_second_max, pause=pause)
        return await self._store.read()
