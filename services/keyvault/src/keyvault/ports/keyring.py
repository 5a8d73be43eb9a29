"""The root key, and where the keyring is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from keyvault.domain.keyring import Keyring, KeyringRecord, KeyWrapper

if TYPE_CHECKING:
    from collections.abc import Sequence


class RootKey(KeyWrapper, Protocol):
    """The key that wraps the keyring. It is used at start and on rotation only."""

    @property
    def root_key_id(self) -> str:
        """Return a name that tells this root key from another, and says nothing of its value."""
        ...


class KeyringStore(Protocol):
    """Where the wrapped keyring is kept."""

    async def load(self) -> list[KeyringRecord]:
        """Return every version of every key. Raises UnavailableError when the store is away."""
        ...

    async def create(self, records: Sequence[KeyringRecord]) -> bool:
        """Store a first keyring; return False, and store nothing, when there is one already."""
        ...


class KeyringSource(Protocol):
    """The unwrapped keyring of this process."""

    def current(self) -> Keyring:
        """Return the present snapshot."""
        ...

    async def reload(self) -> Keyring:
        """Read the keyring again, and return the new snapshot. Raises UnavailableError, RootKeyUnusableError."""
        ...
