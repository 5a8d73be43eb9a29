"""Reading authority and appending leases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from keyvault.domain.audit_log import AuditEntry
from keyvault.domain.authority import RowSeal
from keyvault.domain.envelope import Envelope
from keyvault.ports.rows import BindingRow, KeyRow, ShareRow


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
    shares: Sequence[ShareRow]
    halts: RowSeal | None
    """The seal of the set of halts; None when there is no set, or more than one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGrant:
    """A lease that is to be appended, and the rows that it relies upon."""

    agent_id: str
    binding_index: int
    provider_key_id: str
    key_index: int
    share_index: int
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

        With an agent come its shares that have not ended, and their keys.

        With a key that is named comes a binding of its agent, or of the first agent of its owner, if there is one.

        Revoked keys are returned only when they are named.
        """
        ...

    async def append_leases(self, grants: Sequence[LeaseGrant], *, halts_index: int) -> list[AppendedLease | None]:
        """Append those leases whose rows are still the present ones, durably; None where they are not.

        None of them is appended when `halts_index` is not that of the present set of halts. The rows are read again
        after the head of the log is locked, so no lease is granted after a change of its rows.

        Raises:
            AuditUnavailableError: it is not known to be durable; no secret may leave.
        """
        ...
