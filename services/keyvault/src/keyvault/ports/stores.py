"""Where authority rows are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from keyvault.domain.requests import RecordedRequest
    from keyvault.ports.rows import (
        BindingChange,
        BindingRow,
        HaltsChange,
        HaltsRow,
        KeyChange,
        KeyFilter,
        KeyRow,
        PutResult,
        ShareChange,
        ShareFilter,
        ShareRow,
    )


class ProviderKeyStore(Protocol):
    """Authority rows of provider keys. Every method raises UnavailableError when the store is away."""

    async def head(self) -> int:
        """Return the index of the last audit entry, or 0."""
        ...

    async def get(self, provider_key_id: str) -> KeyRow | None:
        """Return the present row of a key."""
        ...

    async def get_at(self, provider_key_id: str, audit_index: int) -> KeyRow | None:
        """Return the row of a key that one audit entry wrote, superseded or not."""
        ...

    async def get_many(self, provider_key_ids: Sequence[str]) -> list[KeyRow]:
        """Return the present rows of those of these keys that exist."""
        ...

    async def find(self, key_filter: KeyFilter) -> list[KeyRow]:
        """Return present rows in the order of their ids."""
        ...

    async def find_request(self, scope: str, request_id: str) -> RecordedRequest | None:
        """Return what a request id was used for."""
        ...

    async def forget_requests(self, age: timedelta) -> None:
        """Forget request ids that were recorded longer than `age` ago."""
        ...

    async def put(self, change: KeyChange) -> PutResult:
        """Write a change with its audit entry, secret and request id, all or nothing, durably.

        A new secret replaces the stored one, and a revoked key keeps none.

        Raises:
            AuditUnavailableError: it is not known to be durable.
        """
        ...


class ShareStore(Protocol):
    """Authority rows of shares. Every method raises UnavailableError when the store is away."""

    async def head(self) -> int:
        """Return the index of the last audit entry, or 0."""
        ...

    async def get_share(self, provider_key_id: str, agent_id: str) -> ShareRow | None:
        """Return the present row of a key and an agent, also when it says that the share ended."""
        ...

    async def get_share_at(self, provider_key_id: str, agent_id: str, audit_index: int) -> ShareRow | None:
        """Return the row of a share that one audit entry wrote, superseded or not."""
        ...

    async def find_shares(self, share_filter: ShareFilter) -> list[ShareRow]:
        """Return present rows that have not ended, in the order of their agents' ids."""
        ...

    async def find_request(self, scope: str, request_id: str) -> RecordedRequest | None:
        """Return what a request id was used for."""
        ...

    async def put_share(self, change: ShareChange) -> PutResult:
        """Write a change with its audit entry and request id, all or nothing, durably.

        Raises:
            AuditUnavailableError: it is not known to be durable.
        """
        ...


class HaltStore(Protocol):
    """The authority row of the set of halts. Every method raises UnavailableError when the store is away."""

    async def head(self) -> int:
        """Return the index of the last audit entry, or 0."""
        ...

    async def is_log_new(self) -> bool:
        """Return whether the log holds nothing but entries of the keyring, which is made before all else."""
        ...

    async def get_halts(self) -> HaltsRow | None:
        """Return the present row, or None when there is none, or more than one."""
        ...

    async def get_halts_at(self, audit_index: int) -> HaltsRow | None:
        """Return the row that one audit entry wrote, superseded or not."""
        ...

    async def find_request(self, scope: str, request_id: str) -> RecordedRequest | None:
        """Return what a request id was used for."""
        ...

    async def put_halts(self, change: HaltsChange) -> PutResult:
        """Write a change with its audit entry and request id, all or nothing, durably.

        Raises:
            AuditUnavailableError: it is not known to be durable.
        """
        ...


class BindingStore(Protocol):
    """Authority rows of agent bindings. Every method raises UnavailableError when the store is away."""

    async def head(self) -> int:
        """Return the index of the last audit entry, or 0."""
        ...

    async def get_binding(self, agent_id: str) -> BindingRow | None:
        """Return the present row of an agent."""
        ...

    async def get_binding_at(self, agent_id: str, audit_index: int) -> BindingRow | None:
        """Return the row of an agent that one audit entry wrote, superseded or not."""
        ...

    async def find_request(self, scope: str, request_id: str) -> RecordedRequest | None:
        """Return what a request id was used for."""
        ...

    async def put_binding(self, change: BindingChange) -> PutResult:
        """Write a change with its audit entry and request id, all or nothing, durably.

        Raises:
            AuditUnavailableError: it is not known to be durable.
        """
        ...
