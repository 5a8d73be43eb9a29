"""AcquireLeases: picks a key for each item, records every lease in the audit log, and only then opens a secret.

One statement reads the authority of a whole batch, one appends its leases; calls of several Routers share them. What
changed between the two is picked anew. Nothing is sealed here: the api seals what it answers to the asking process.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.envelope import open_envelope
from keyvault.domain.errors import LeaseBoundReachedError, StaleAuthorityError
from keyvault.domain.lease_ids import new_lease_id
from keyvault.domain.leases import (
    AgentPurpose,
    DistinctKeyBound,
    Judge,
    LeaseItem,
    NoUsableKey,
    Selection,
    ValidationPurpose,
    ensure_agents_owner,
    select,
    select_for_validation,
)
from keyvault.domain.provider_keys import Operation
from keyvault.ports import AppendedLease, LeaseGrant
from keyvault.usecases.read_authority import believed
from keyvault.usecases.verify_rows import reloading
from servicekit.errors import DomainError
from servicekit.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyvault.domain.halts import StoredHalts
    from keyvault.ports import Alarms, Capabilities, KeyringSource, LeaseLog
    from keyvault.usecases.read_authority import Authority, ReadAuthority
    from servicekit.clock import Clock

ROUNDS_MAX: Final = 4
GRANTS_PER_APPEND_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class LeaseCall:
    """One call of a Router process: who it is, the hash of the key it will be sealed to, and its items."""

    caller: str
    holder: str
    recipient_hash: str
    items: tuple[LeaseItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantedLease:
    """A lease that is in the log, with its secret."""

    lease_id: str
    selection: Selection
    authority_index: int
    life: timedelta
    secret: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class NoLease:
    """There was no key to lease, at one index of the log."""

    reason: NoUsableKey
    authority_index: int
    life: timedelta


LeaseOutcome = GrantedLease | NoLease | DomainError


@dataclass(slots=True)
class _Asked:
    """One item under way."""

    call: LeaseCall
    item: LeaseItem
    outcome: LeaseOutcome | None = None


class AcquireLeases:
    """Serves batches of calls."""

    def __init__(  # noqa: PLR0913 (its ports; keyword-only)
        self,
        *,
        log: LeaseLog,
        read: ReadAuthority,
        keyring: KeyringSource,
        capabilities: Capabilities,
        alarms: Alarms,
        bound: DistinctKeyBound,
        clock: Clock,
        life: timedelta,
    ) -> None:
        """Grant leases of `life` from the keys behind `log`."""
        self._log = log
        self._read = read
        self._keyring = keyring
        self._capabilities = capabilities
        self._alarms = alarms
        self._bound = bound
        self._clock = clock
        self._life = life

    async def __call__(self, calls: Sequence[LeaseCall]) -> list[list[LeaseOutcome]]:
        """Return, for every call, the outcome of each of its items, in order.

        Raises:
            AuditUnavailableError: the entries are not known to be durable; no secret was opened.
            UnavailableError: authority cannot be read.
        """
        asked = [[_Asked(call, item) for item in call.items] for call in calls]
        waiting = [each for row in asked for each in row]
        for _ in range(ROUNDS_MAX):
            waiting = await self._round(waiting)
            if not waiting:
                break
        for each in waiting:
            each.outcome = StaleAuthorityError("the authority of this lease changed again and again; retry")
        return [[_outcome(each) for each in row] for row in asked]

    async def _round(self, asked: list[_Asked]) -> list[_Asked]:
        """Settle what can be settled from one snapshot; return what was overtaken by a change."""
        authority = await self._read([each.item.purpose for each in asked])
        chosen: list[tuple[_Asked, Selection]] = []
        for each in asked:
            selection = self._choose(each, authority)
            if isinstance(selection, Selection):
                chosen.append((each, selection))
            else:
                each.outcome = selection
        overtaken: list[_Asked] = []
        for start in range(0, len(chosen), GRANTS_PER_APPEND_MAX):
            overtaken += await self._append(chosen[start : start + GRANTS_PER_APPEND_MAX], authority)
        return overtaken

    def _choose(self, asked: _Asked, authority: Authority) -> Selection | NoLease | DomainError:
        try:
            selection = self._selected(asked.item, authority, believed(authority.halts))
            if isinstance(selection, NoUsableKey):
                return NoLease(reason=selection, authority_index=authority.head, life=self._life)
            key_id = selection.key.key.provider_key_id
            self._bound.admit(asked.call.caller, key_id, self._clock.monotonic())
        except LeaseBoundReachedError as error:
            self._alarms.lease_bound_reached(asked.call.caller)
            return error
        except DomainError as error:
            return error
        return selection

    def _selected(self, item: LeaseItem, authority: Authority, halts: StoredHalts) -> Selection | NoUsableKey:
        purpose = item.purpose
        if isinstance(purpose, ValidationPurpose):
            key = authority.key(purpose.provider_key_id)
            bindings = [] if key is None else authority.bindings_for(key)
            return select_for_validation(purpose, key, bindings, halts)
        binding = None
        if isinstance(purpose, AgentPurpose):
            binding = ensure_agents_owner(authority.binding(purpose.agent_id), purpose)
            candidates = authority.candidates(binding)
        else:
            candidates = authority.platform_candidates()
        judge = Judge(
            item=item, operation=purpose.operation, can_serve=self._capabilities.can_serve, now=self._clock.now()
        )
        return select(judge, candidates=candidates, binding=binding, halts=halts)

    async def _append(self, chosen: Sequence[tuple[_Asked, Selection]], authority: Authority) -> list[_Asked]:
        now = self._clock.now()
        ring = self._keyring.current()
        lease_ids = [
            new_lease_id(
                ring,
                holder=asked.call.holder,
                provider_key_id=selection.key.key.provider_key_id,
                key_version=selection.key.key.key_version,
                now=now,
            )
            for asked, selection in chosen
        ]
        grants = [
            LeaseGrant(
                agent_id=selection.agent_id,
                binding_index=selection.binding_index,
                provider_key_id=selection.key.key.provider_key_id,
                key_index=selection.key.seal.audit_index,
                share_index=selection.share_index,
                entry=AuditEntry(
                    kind=EntryKind.LEASE_GRANTED,
                    time=now,
                    caller=asked.call.caller,
                    provider_key_id=selection.key.key.provider_key_id,
                    key_version=selection.key.key.key_version,
                    key_state=int(selection.key.key.state),
                    agent_id=_agent_concerned(asked, selection),
                    account=selection.account,
                    details=_details(asked, selection, lease_id),
                ),
            )
            for (asked, selection), lease_id in zip(chosen, lease_ids, strict=True)
        ]
        overtaken = []
        appended = await self._log.append_leases(grants, halts_index=believed(authority.halts).seal.audit_index)
        for (asked, selection), lease_id, lease in zip(chosen, lease_ids, appended, strict=True):
            if lease is None:
                overtaken.append(asked)
            else:
                asked.outcome = await self._granted(selection, lease_id, lease)
        return overtaken

    async def _granted(self, selection: Selection, lease_id: str, lease: AppendedLease) -> LeaseOutcome:
        key = selection.key.key
        try:
            secret = await reloading(
                self._keyring,
                lambda ring: open_envelope(
                    lease.envelope,
                    context=key.envelope_context(ring.deployment),
                    kek=ring.kek(lease.envelope.kek_version),
                ),
            )
        except DomainError as error:
            await self._read.report(key.provider_key_id, error)
            return error
        return GrantedLease(
            lease_id=lease_id,
            selection=selection,
            authority_index=lease.audit_index,
            life=self._life,
            secret=secret,
        )


def _outcome(asked: _Asked) -> LeaseOutcome:
    if asked.outcome is None:
        raise AssertionError("an item was left without an outcome")
    return asked.outcome


def _agent_concerned(asked: _Asked, selection: Selection) -> str:
    # The binding that tells a test call's account may be that of any agent of the owner: the call is not that agent's.
    is_of_agent = isinstance(asked.item.purpose, AgentPurpose)
    return selection.agent_id if is_of_agent else selection.key.key.holder.agent_id


def _details(asked: _Asked, selection: Selection, lease_id: str) -> tuple[tuple[str, str], ...]:
    purpose = asked.item.purpose
    operation = Operation.KEY_VALIDATION if isinstance(purpose, ValidationPurpose) else purpose.operation
    return (
        ("lease_id", lease_id),
        ("operation", operation.name),
        ("holder", asked.call.holder),
        ("recipient", asked.call.recipient_hash),
        *((("share_index", str(selection.share_index)),) if selection.share is not None else ()),
    )
