"""What the use cases need from outside, owned by them. Adapters give it; `tests/contract` holds every adapter to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from keyvault.domain.audit_log import AuditEntry, IndexedEntry
from keyvault.domain.authority import AuthorityWindow, RowSeal
from keyvault.domain.bindings import AgentBinding
from keyvault.domain.envelope import Envelope
from keyvault.domain.keyring import KeyWrapper
from keyvault.domain.ownership import Account
from keyvault.domain.provider_keys import ProviderKey
from keyvault.domain.requests import RequestIdentity

if TYPE_CHECKING:
    from datetime import timedelta

    from keyvault.domain.keyring import Keyring, KeyringRecord
    from keyvault.domain.leases import EmbeddingSpace
    from keyvault.domain.provider_keys import Operation, OperationRoute
    from keyvault.domain.requests import RecordedRequest


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


@dataclass(frozen=True, slots=True)
class FoundBy:
    """The columns by which a row of a provider key is found. They must agree with its record."""

    provider_key_id: str
    scope: int
    owner_kind: int
    owner_id: str
    agent_id: str
    provider: str
    base_url: str
    priority: int
    state: int
    key_version: int


@dataclass(frozen=True, slots=True)
class KeyRow:
    """An authority row of a provider key as it is stored: not to be believed before it is verified."""

    found_by: FoundBy
    record: bytes
    seal: RowSeal


@dataclass(frozen=True, slots=True)
class BindingRow:
    """An authority row of a binding as it is stored: not to be believed before it is verified."""

    agent_id: str
    owner_id: str
    record: bytes
    seal: RowSeal


@dataclass(frozen=True, slots=True)
class SealedVersion:
    """A sealed secret with what finds its equals."""

    envelope: Envelope
    equality_mac_version: int
    equality_mac: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """A new authority row of a provider key, all that is written with it, and what it must supersede."""

    key: ProviderKey
    record: bytes
    expected_index: int
    window: AuthorityWindow
    entry: AuditEntry
    secret: SealedVersion | None = None
    request: RequestIdentity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BindingChange:
    """A new authority row of a binding, all that is written with it, and what it must supersede."""

    binding: AgentBinding
    record: bytes
    expected_index: int
    window: AuthorityWindow
    entry: AuditEntry
    request: RequestIdentity | None = None


PutStatus = Literal["WRITTEN", "REPLAYED", "STALE", "WINDOW_MISSED", "KEY_NOT_PRIMARY"]


@dataclass(frozen=True, slots=True)
class PutResult:
    """What became of a change, and the audit index that belongs to that answer.

    WRITTEN: the index of its entry. REPLAYED: the index that the request id was recorded with. STALE: that of the
    present row, or 0. WINDOW_MISSED: the head of the log. KEY_NOT_PRIMARY: 0.
    """

    status: PutStatus
    audit_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFilter:
    """Which keys of an account to list, oldest first."""

    account: Account
    agent_id: str = ""
    provider: str = ""
    include_revoked: bool = False
    after_key_id: str = ""
    limit: int = 50


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityQuery:
    """Whose authority to read: that of agents, of the platform, of single keys."""

    agent_ids: frozenset[str]
    key_ids: frozenset[str]
    includes_platform: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityRows:
    """Authority as it stood at one index of the log: one snapshot, not to be believed before it is verified."""

    head: int
    bindings: Sequence[BindingRow]
    keys: Sequence[KeyRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGrant:
    """A lease that is to be appended, and the rows that it relies upon."""

    agent_id: str
    binding_index: int
    provider_key_id: str
    key_index: int
    entry: AuditEntry


@dataclass(frozen=True, slots=True)
class AppendedLease:
    """A lease that is in the log, with the secret still sealed."""

    audit_index: int
    envelope: Envelope


class LeaseLog(Protocol):
    """Reading authority and appending leases. Every method raises UnavailableError when the store is away."""

    async def read_authority(self, query: AuthorityQuery) -> AuthorityRows:
        """Return the bindings of the agents, the keys that they and the platform may use, and the keys named.

        With a key that is named comes a binding of its agent, or of the first agent of its owner, if there is one.

        Revoked keys are returned only when they are named.
        """
        ...

    async def append_leases(self, grants: Sequence[LeaseGrant]) -> list[AppendedLease | None]:
        """Append those leases whose rows are still the present ones, durably; None where they are not.

        The rows are read again after the head of the log is locked, so no lease is granted after a change of its rows.

        Raises:
            AuditUnavailableError: it is not known to be durable; no secret may leave.
        """
        ...


class AuditLog(Protocol):
    """The log itself."""

    async def append(self, entries: Sequence[AuditEntry]) -> int:
        """Append entries that change no authority, durably; return the index of the first.

        Raises:
            AuditUnavailableError: it is not known to be durable.
        """
        ...


@dataclass(frozen=True, slots=True)
class AuthorityChanges:
    """Changes of authority after an index, oldest first, and the head of the log in the same snapshot.

    When `is_complete` is false, there are more between the last of these and `head`.
    """

    head: int
    changes: Sequence[IndexedEntry]
    is_complete: bool


class AuthorityFeed(Protocol):
    """Changes of authority as they are appended, by any replica."""

    async def head(self) -> int:
        """Return the index of the last audit entry, from the primary. Raises UnavailableError when it is away."""
        ...

    async def read_changes(self, after: int, *, limit: int) -> AuthorityChanges:
        """Return changes after an index, from the primary.

        Raises:
            UnavailableError: it is away.
            AuthorityForgedError: an entry cannot be read.
        """
        ...

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` when another change may have been appended; a call may be missed, so poll as well."""
        ...


@dataclass(frozen=True, slots=True)
class WatcherReport:
    """What one watching Router process did: how far it has acknowledged, and whether it waits for an echo."""

    caller: str
    holder: str
    acked_index: int
    awaits_echo: bool


class WatcherRegistry(Protocol):
    """Which Router processes may still use what they cached, known to all replicas.

    Every method raises UnavailableError when the store is away.
    """

    async def record(self, reports: Sequence[WatcherReport], bound: timedelta) -> None:
        """Record acknowledgements, and that those who await an echo may use what they cached for `bound` from now.

        It must be durable before the changes are read that go out ahead of the echo: a revocation that is not among
        those is appended later, and so finds the watcher recorded.
        """
        ...

    async def pending(self, audit_index: int) -> frozenset[tuple[str, str]]:
        """Return (caller, holder) of those who may still use what was leased before a change."""
        ...

    async def acknowledged(self, audit_index: int) -> frozenset[tuple[str, str]]:
        """Return (caller, holder) of those who have acknowledged a change."""
        ...

    async def forget(self, idle: timedelta) -> None:
        """Drop those whose time passed longer than `idle` ago."""
        ...


@dataclass(frozen=True, slots=True)
class ProviderTerms:
    """What the catalogue says of a provider: its own base URL, and the only hosts of it, if those are fixed."""

    name: str
    base_url: str
    fixed_hosts: frozenset[str]


class Capabilities(Protocol):
    """What providers and models can do, as far as the catalogue or the owner's declaration says."""

    def provider(self, slug: str) -> ProviderTerms | None:
        """Return the terms of a provider, or None when the catalogue does not have it."""
        ...

    def providers(self) -> Sequence[str]:
        """Return the slugs of all providers."""
        ...

    def foreign_vendor(self, provider: str, secret: bytes) -> str:
        """Return the name of the other vendor whose key this plainly is, or nothing."""
        ...

    def has_vendor_format(self, secret: bytes) -> bool:
        """Return whether the secret has the format of some vendor's keys."""
        ...

    def why_unable(self, provider: str, base_url: str, route: OperationRoute) -> str:
        """Return why the route's model cannot do its operation, for its owner; nothing when it can.

        A known vendor's host tells which models there are, also where it is named as a compatible endpoint.
        """
        ...

    def can_serve(self, key: ProviderKey, operation: Operation, space: EmbeddingSpace | None) -> bool:
        """Return whether the key's provider and mapping can do the operation, in the space if one is required."""
        ...


class Alarms(Protocol):
    """What an operator must hear of."""

    def corruption_found(self, row_id: str, what: str) -> None:
        """Say that the stored bytes of a key or an agent fail authentication."""
        ...

    def watch_failing(self, what: str, facts: Mapping[str, str | int]) -> None:
        """Say that changes cannot be read, so that watchers get no echo: said once, until it has worked again."""
        ...

    def lease_bound_reached(self, caller: str) -> None:
        """Say that a caller leases more distinct keys than one may."""
        ...
