"""Reads the authority that leases are picked by: one snapshot, every row verified, halts included."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from keyvault.domain.bindings import StoredBinding
from keyvault.domain.errors import AuthorityForgedError, EnvelopeCorruptError
from keyvault.domain.halts import ROW_ID, StoredHalts
from keyvault.domain.leases import AgentPurpose, PlatformPurpose, ValidationPurpose, agents_keys, platform_keys
from keyvault.domain.ownership import Scope
from keyvault.domain.provider_keys import StoredKey
from keyvault.domain.shares import StoredShare, share_name
from keyvault.ports import AuthorityQuery
from servicekit.errors import DomainError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from keyvault.domain.leases import Candidate, Purpose
    from keyvault.ports import AuthorityRows, LeaseLog
    from keyvault.usecases.present_halts import PresentHalts
    from keyvault.usecases.report_corruption import ReportCorruption
    from keyvault.usecases.verify_rows import VerifyRows

Row = TypeVar("Row")
Verified = TypeVar("Verified")


def believed(found: Verified | DomainError) -> Verified:
    """Return what was verified.

    Raises:
        DomainError: it was not. A forged row is never passed over: that would let an edit turn "this key" into "another
        payer".
    """
    if isinstance(found, DomainError):
        raise found
    return found


@dataclass(slots=True)
class Authority:
    """Verified rows of one snapshot, by how items look for them; an error stands in the place of a forged row."""

    head: int
    halts: StoredHalts | DomainError
    bindings: dict[str, StoredBinding | DomainError] = field(default_factory=dict)
    of_owner: dict[str, list[str]] = field(default_factory=dict)
    by_id: dict[str, StoredKey | DomainError] = field(default_factory=dict)
    by_agent: dict[str, list[StoredKey | DomainError]] = field(default_factory=dict)
    by_owner: dict[str, list[StoredKey | DomainError]] = field(default_factory=dict)
    of_platform: list[StoredKey | DomainError] = field(default_factory=list)
    shares: dict[str, list[tuple[str, StoredShare | DomainError]]] = field(default_factory=dict)
    """By agent: the key of each share, and the share."""

    def binding(self, agent_id: str) -> StoredBinding | None:
        """Return the binding of an agent. Raises DomainError when it is forged."""
        found = self.bindings.get(agent_id)
        return None if found is None else believed(found)

    def key(self, provider_key_id: str) -> StoredKey | None:
        """Return a key that was named. Raises DomainError when it is forged."""
        found = self.by_id.get(provider_key_id)
        return None if found is None else believed(found)

    def bindings_for(self, key: StoredKey) -> list[StoredBinding]:
        """Return the bindings of the agents of a key's owner. Raises DomainError when one is forged."""
        names = self.of_owner.get(key.key.holder.owned_by.party_id, ())
        return [believed(self.bindings[name]) for name in names]

    def candidates(self, binding: StoredBinding) -> list[Candidate]:
        """Return the keys that a bound agent may use. Raises DomainError when one, or a share of it, is forged."""
        bound = binding.binding
        shared = self.shares.get(bound.agent_id, ())
        found = [*self.by_agent.get(bound.agent_id, ()), *self.by_owner.get(bound.owner_id, ())]
        found += [self.by_id[key_id] for key_id, _ in shared if key_id in self.by_id]
        return agents_keys(binding, [believed(each) for each in found], [believed(share) for _, share in shared])

    def platform_candidates(self) -> list[Candidate]:
        """Return the platform's own keys. Raises DomainError when one is forged."""
        return platform_keys([believed(each) for each in self.of_platform])


class ReadAuthority:
    """Reads what a batch of purposes needs, in one statement."""

    def __init__(self, log: LeaseLog, *, verify: VerifyRows, halts: PresentHalts, corruption: ReportCorruption) -> None:
        """Read `log`, and tell `corruption` of what is forged."""
        self._log = log
        self._verify = verify
        self._halts = halts
        self._corruption = corruption

    async def __call__(self, purposes: Iterable[Purpose]) -> Authority:
        """Return the authority of these purposes.

        Raises:
            AuditUnavailableError: a row is forged, and the entry that says so is not known to be durable.
            UnavailableError: authority cannot be read.
        """
        purposes = list(purposes)
        rows = await self._log.read_authority(
            AuthorityQuery(
                agent_ids=frozenset(each.agent_id for each in purposes if isinstance(each, AgentPurpose)),
                key_ids=frozenset(each.provider_key_id for each in purposes if isinstance(each, ValidationPurpose)),
                includes_platform=any(isinstance(each, PlatformPurpose) for each in purposes),
            )
        )
        authority = Authority(rows.head, await self._checked(ROW_ID, self._halts.sealed_by, rows.halts))
        await self._add_bindings(authority, rows)
        await self._add_shares(authority, rows)
        await self._add_keys(authority, rows)
        return authority

    async def report(self, row_id: str, error: DomainError) -> None:
        """Tell the log and the operator when `error` says that stored bytes were changed."""
        if isinstance(error, AuthorityForgedError | EnvelopeCorruptError):
            await self._corruption(row_id, error)

    async def _add_bindings(self, authority: Authority, rows: AuthorityRows) -> None:
        for binding in rows.bindings:
            found = await self._checked(binding.agent_id, self._verify.binding, binding)
            authority.bindings[binding.agent_id] = found
            authority.of_owner.setdefault(binding.owner_id, []).append(binding.agent_id)

    async def _add_shares(self, authority: Authority, rows: AuthorityRows) -> None:
        for share in rows.shares:
            name = share_name(share.provider_key_id, share.agent_id)
            found = await self._checked(name, self._verify.share, share)
            authority.shares.setdefault(share.agent_id, []).append((share.provider_key_id, found))

    async def _add_keys(self, authority: Authority, rows: AuthorityRows) -> None:
        for row in rows.keys:
            # By the columns on purpose: an edited column must spoil the item that it leads to, not hide the row.
            found_by = row.found_by
            stored = await self._checked(found_by.provider_key_id, self._verify.key, row)
            authority.by_id[found_by.provider_key_id] = stored
            if found_by.scope == Scope.AGENT:
                authority.by_agent.setdefault(found_by.agent_id, []).append(stored)
            elif found_by.scope == Scope.OWNER:
                authority.by_owner.setdefault(found_by.owner_id, []).append(stored)
            elif found_by.scope == Scope.PLATFORM:
                authority.of_platform.append(stored)

    async def _checked(
        self, row_id: str, verify: Callable[[Row], Awaitable[Verified]], row: Row
    ) -> Verified | DomainError:
        try:
            return await verify(row)
        except (AuthorityForgedError, EnvelopeCorruptError) as error:
            await self.report(row_id, error)
            return error
        except DomainError as error:
            return error
