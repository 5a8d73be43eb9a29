"""The root key, and where the keyring is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyvault.domain.keyring import Keyring, KeyringRecord
    from servicekit.secrets import Secret


class RootKey(Protocol):
    """The key that wraps the keyring. It is used at start and on rotation only, and may live far away."""

    @property
    def root_key_id(self) -> str:
        """Return a name that tells this root key from another, and says nothing of its value."""
        ...

    async def wrap(self, key: Secret, associated_data: bytes) -> bytes:
        """Return `key` wrapped, bound to `associated_data`.

        Raises:
            RootKeyUnavailableError: where the root key lives cannot be reached in time, or refuses.
            RootKeyUnusableError: the root key can wrap nothing; trying again does not help.
        """
        ...

    async def unwrap(self, wrapped: bytes, associated_data: bytes) -> Secret:
        """Return the key in `wrapped`.

        Raises:
            RootKeyUnavailableError: where the root key lives cannot be reached in time, or refuses.
            RootKeyUnusableError: other bytes, other associated data or another root key; trying again does not help.
        """
        ...


class KeyringStore(Protocol):
    """Where the wrapped keyring is kept."""

    async def load(self) -> list[KeyringRecord]:
        """Return every version of every key. Raises UnavailableError when the store is away."""
        ...

    async def create(self, records: Sequence[KeyringRecord]) -> bool:
        """Store those versions that are not stored yet, by another replica for one; return whether any was new."""
        ...


class KeyringSource(Protocol):
    """The unwrapped keyring of this process."""

    def current(self) -> Keyring:
        """Return the present snapshot."""
        ...

    async def reload(self) -> Keyring:
        """Read the keyring again, and return the new snapshot.

        Raises:
            UnavailableError: the store is away, or RootKeyUnavailableError: where the root key lives is.
            RootKeyUnusableError: the keyring was wrapped by another root key, or for another deployment.
        """
        ...
