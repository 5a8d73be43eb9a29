"""Erasures of owners: what is destroyed, and how far it has come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from keyvault.domain.audit_log import AuditEntry
    from keyvault.domain.erasures import Erasure
    from keyvault.domain.requests import RequestIdentity
    from keyvault.ports.rows import KeyRow


class ErasureStore(Protocol):
    """Where erasures are kept. Every method raises UnavailableError when the store is away."""

    async def begin(self, owner_id: str, *, entry: AuditEntry, request: RequestIdentity) -> int:
        """Destroy every secret of an owner, with the entry that says so, durably; return the index of that entry.

        An erasure that covers all that the owner has stands, and is returned instead; so is that of a repeated request.

        Raises:
            AuditUnavailableError: it is not known to be durable.
        """
        ...

    async def get(self, owner_id: str, begin_index: int | None = None) -> Erasure | None:
        """Return an erasure of an owner: the one that began there, else the last one."""
        ...

    async def unfinished(self, limit: int) -> Sequence[Erasure]:
        """Return erasures some keys of which may not be revoked yet, the oldest first."""
        ...

    async def unrevoked(self, erasure: Erasure, *, after_key_id: str, limit: int) -> list[KeyRow]:
        """Return the present rows of keys that the erasure is about and that are not revoked, by their ids."""
        ...

    async def finish(self, erasure: Erasure, now: datetime) -> None:
        """Note that every key is revoked, and the last index at which one was."""
        ...
