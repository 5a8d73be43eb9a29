"""The root key, and where the keyring is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from keyvault.domain.audit_log import AuditEntry
from keyvault.domain.keyring import KeyringRecord
from keyvault.domain.requests import RequestIdentity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from keyvault.domain.keyring import KeyPurpose, Keyring, KeyState
    from keyvault.domain.keyring_versions import Backup, KeyringVersion, Replica
    from keyvault.domain.requests import RecordedRequest
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


@dataclass(frozen=True, slots=True)
class RewrappedRecord:
    """A stored version, and how another root key wraps it."""

    record: KeyringRecord
    wrapped_key: bytes


class KeyringCustody(KeyringSource, Protocol):
    """The keyring of this process, and the root keys that it holds."""

    @property
    def root_key_id(self) -> str:
        """Return the id of the root key that wraps the keyring now, and what is made new."""
        ...

    @property
    def next_root_key_id(self) -> str | None:
        """Return the id of the root key that a rotation would go to, if one is set."""
        ...

    async def wrap_new(self, purpose: KeyPurpose, version: int) -> KeyringRecord:
        """Return a new STAGED version, drawn at random. Raises RootKeyUnavailableError, RootKeyUnusableError."""
        ...

    async def rewrapped(self, root_key_id: str) -> list[RewrappedRecord]:
        """Return every version that is in use as another root key wraps it.

        Raises:
            RootKeyUnusableError: this process holds no such root key, or it does not give back what it wrapped.
            RootKeyUnavailableError: where a root key lives cannot be reached in time, or refuses.
            UnavailableError: the store is away.
        """
        ...

    async def prove_roots(self) -> list[str]:
        """Return the ids of the root keys that gave back what they wrapped, asked now if they were not before."""
        ...

    async def refresh(self) -> Keyring:
        """Read the keyring again if what is stored has changed. Raises as `reload` does."""
        ...


@dataclass(frozen=True, slots=True)
class KeyringChange:
    """What every change of the keyring is recorded with."""

    entry: AuditEntry
    request: RequestIdentity


ChangeStatus = Literal["WRITTEN", "REPLAYED", "STALE", "NOT_READY", "NEEDED", "IN_BACKUPS", "ROOT_IN_USE"]


class KeyringAdministration(Protocol):
    """The versions of the keyring, replicas and backups. Every change is one statement with its audit entry.

    Every method raises UnavailableError when the store is away, and a change AuditUnavailableError when it is not known
    to be durable.
    """

    async def find_request(self, scope: str, request_id: str) -> RecordedRequest | None:
        """Return what a request id was used for."""
        ...

    async def versions(self) -> list[KeyringVersion]:
        """Return every version, by purpose and version."""
        ...

    async def count_rows(self) -> dict[tuple[KeyPurpose, int], int]:
        """Return how many rows need each version of those purposes whose rows are counted: of the KEK."""
        ...

    async def replicas(self, live: timedelta) -> list[Replica]:
        """Return replicas; those that were seen within `live` are live."""
        ...

    async def report(
        self, replica_id: str, *, release: str, root_key_ids: Sequence[str], proved: Sequence[str]
    ) -> None:
        """Say that a replica is alive, and what it has proved that it can use."""
        ...

    async def forget_replicas(self, idle: timedelta) -> None:
        """Drop replicas that were not seen for longer than `idle`."""
        ...

    async def backups(self) -> list[Backup]:
        """Return backups that have not expired."""
        ...

    async def stage(self, record: KeyringRecord, change: KeyringChange) -> ChangeStatus:
        """Store a STAGED version. STALE: there is a staged one already, or the number is taken."""
        ...

    async def promote(self, purpose: KeyPurpose, version: int, change: KeyringChange, live: timedelta) -> ChangeStatus:
        """Make a STAGED version PRIMARY. STALE: it is not staged. NOT_READY: a live replica has not proved it."""
        ...

    async def set_state(
        self, purpose: KeyPurpose, version: int, states: tuple[KeyState, KeyState], change: KeyringChange
    ) -> ChangeStatus:
        """Move a version from one state to another. STALE: it is in another one. NEEDED: a row needs it."""
        ...

    async def destroy(
        self, purpose: KeyPurpose, version: int, change: KeyringChange, *, gives_up_backups: bool
    ) -> ChangeStatus:
        """Wipe a DISABLED version. NEEDED, IN_BACKUPS, ROOT_IN_USE say why not."""
        ...

    async def rotate_root(
        self, rewrapped: Sequence[RewrappedRecord], root_key_id: str, change: KeyringChange, live: timedelta
    ) -> ChangeStatus:
        """Store every version under another root key. STALE: one changed meanwhile. NOT_READY: a replica lacks it."""
        ...

    async def put_backup(self, backup: Backup, change: KeyringChange) -> ChangeStatus:
        """Register a backup, or move its expiry."""
        ...
