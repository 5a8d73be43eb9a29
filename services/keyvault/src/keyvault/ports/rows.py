"""Authority rows as they are stored, and what a change of one carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from keyvault.domain.audit_log import AuditEntry
from keyvault.domain.authority import AuthorityWindow, RowSeal
from keyvault.domain.bindings import AgentBinding
from keyvault.domain.envelope import Envelope
from keyvault.domain.ownership import Account
from keyvault.domain.provider_keys import ProviderKey
from keyvault.domain.requests import RequestIdentity
from keyvault.domain.shares import KeyShare


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
class ShareRow:
    """An authority row of a share as it is stored: not to be believed before it is verified."""

    provider_key_id: str
    agent_id: str
    is_ended: bool
    record: bytes
    seal: RowSeal


@dataclass(frozen=True, slots=True)
class HaltsRow:
    """The authority row of the set of halts as it is stored: not to be believed before it is verified."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareChange:
    """A new authority row of a share, all that is written with it, and what it must supersede."""

    share: KeyShare
    record: bytes
    expected_index: int
    window: AuthorityWindow
    entry: AuditEntry
    request: RequestIdentity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HaltsChange:
    """A new authority row of the set of halts, all that is written with it, and what it must supersede."""

    record: bytes
    expected_index: int
    window: AuthorityWindow
    entry: AuditEntry
    resource_id: str = ""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareFilter:
    """Which shares of a key to list, by agent."""

    provider_key_id: str
    agent_id: str = ""
    after_agent_id: str = ""
    limit: int = 50
