"""Sealed secrets as a whole: equals of one, and all of them one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from keyvault.ports.rows import KeyRow

if TYPE_CHECKING:
    from keyvault.domain.ownership import Account


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRow:
    """A wrapped DEK as it is stored, and the present row of its key if that is of the same version."""

    provider_key_id: str
    key_version: int
    wrapped_dek: bytes
    kek_version: int
    key: KeyRow | None


class SecretStore(Protocol):
    """Where sealed secrets are kept. Every method raises UnavailableError when the store is away."""

    async def find_equal(self, provider_key_id: str, *, owned_by: Account | None, limit: int) -> list[KeyRow]:
        """Return the present rows of other keys with the same secret: those of one account, or of all."""
        ...

    async def walk(self, after: tuple[str, int], limit: int) -> list[SecretRow]:
        """Return secrets after this key and version, in their order."""
        ...
