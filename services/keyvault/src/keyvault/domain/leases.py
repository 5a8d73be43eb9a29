"""Which key serves an operation: the order of scopes, the reasons for none, and the bound on what one caller may drain.

The first key wins whose provider and mapping can do the operation, that works now, in the order AGENT, OWNER,
ORGANIZATION, then by priority, then by age. A key of an organization needs a share with the agent that covers the
operation. A platform operation looks at PLATFORM keys only, a validation at the one key that it names.

A halt ends the selection as an error and is never "no key": that would let the platform pay for what is stopped.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.bindings import StoredBinding
from keyvault.domain.errors import (
    AgentNotFoundError,
    LeaseBoundReachedError,
    ProviderKeyNotFoundError,
)
from keyvault.domain.halts import HaltKind, HaltScope, StoredHalts, scope_of_account
from keyvault.domain.ownership import PLATFORM, Account, AccountKind, Holder, Principal, Scope, owner_account
from keyvault.domain.provider_keys import LEASED_STATES, KeyState, Operation, ProviderKey, StoredKey
from keyvault.domain.shares import StoredShare

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """Where vectors can be compared with each other."""

    maker: str
    model: str
    dimensions: int


@dataclass(frozen=True, slots=True)
class AgentPurpose:
    """An operation of an agent, on a key of its owner's, or on one that its organization shares with it."""

    agent_id: str
    operation: Operation
    acting_for: Principal | None


@dataclass(frozen=True, slots=True)
class PlatformPurpose:
    """An operation on the platform's key."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class ValidationPurpose:
    """The test call of one key, on behalf of whoever may act on it; for nobody when it is due by itself."""

    provider_key_id: str
    acting_for: Principal | None


Purpose = AgentPurpose | PlatformPurpose | ValidationPurpose


@dataclass(frozen=True, slots=True)
class LeaseItem:
    """One lease asked for, and which keys will not do."""

    purpose: Purpose
    providers: frozenset[str] = frozenset()
    excluded_key_ids: frozenset[str] = frozenset()
    required_space: EmbeddingSpace | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A key that could serve, and the share that permits it; a key of an organization alone needs one."""

    key: StoredKey
    share: StoredShare | None = None

    @property
    def provider_key_id(self) -> str:
        """Return the id of the key."""
        return self.key.key.provider_key_id

    @property
    def provider_scope(self) -> HaltScope:
        """Return the scope whose halt covers every key of the provider."""
        return HaltScope(HaltKind.PROVIDER, self.key.key.provider)


class Verdict(enum.IntEnum):
    """Whether a key would be leased, or why it would be passed over. The numbers are the contract's."""

    USABLE = 1
    CANNOT_SERVE = 2
    NOT_WORKING = 3
    COOLING_DOWN = 4
    NOT_SHARED = 5


class NoKeyCause(enum.IntEnum):
    """Why there is no key to lease."""

    NO_KEY = 1
    NO_KEY_FOR_OPERATION = 2
    NO_USABLE_KEY = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The key that a lease is granted on, and the authority that was relied upon."""

    key: StoredKey
    account: Account
    binding: StoredBinding | None
    share: StoredShare | None = None
    tester_id: str = ""

    @property
    def share_index(self) -> int:
        """Return the audit index of the share, or 0 when none was needed."""
        return 0 if self.share is None else self.share.seal.audit_index

    @property
    def binding_index(self) -> int:
        """Return the audit index of the binding, or 0 when none was needed."""
        return 0 if self.binding is None else self.binding.seal.audit_index

    @property
    def agent_id(self) -> str:
        """Return the agent whose binding was relied upon, or nothing."""
        return "" if self.binding is None else self.binding.binding.agent_id

    @property
    def owner_id(self) -> str:
        """Return the agent's owner; without an agent, who tests an organization's key, or nothing."""
        return self.tester_id if self.binding is None else self.binding.binding.owner_id


@dataclass(frozen=True, slots=True, kw_only=True)
class NoUsableKey:
    """There is no key to lease, and why."""

    cause: NoKeyCause
    account: Account
    binding: StoredBinding | None
    retry_after: timedelta | None


def ensure_agents_owner(binding: StoredBinding | None, purpose: AgentPurpose) -> StoredBinding:
    """Return the binding of the agent that the item names.

    Raises:
        AgentNotFoundError: the agent is not bound, or the caller acts for another owner.
    """
    acting_for = purpose.acting_for
    if binding is None or (acting_for is not None and acting_for.owner_id != binding.binding.owner_id):
        message = "the agent is not registered, or is another owner's"
        raise AgentNotFoundError(message, agent_id=purpose.agent_id)
    return binding


def agents_keys(
    binding: StoredBinding, keys: Iterable[StoredKey], shares: Iterable[StoredShare] = ()
) -> list[Candidate]:
    """Return those of `keys` that the bound agent may use, in the order in which they are tried.

    A key of scope AGENT needs the same agent *and* the same owner, one of scope ORGANIZATION the same account and a
    share: an agent that was moved leaves its keys behind.
    """
    bound = binding.binding
    shared = {each.share.provider_key_id: each for each in shares if _is_in_force(each, binding)}
    usable = []
    for stored in keys:
        holder = stored.key.holder
        if holder.owned_by == owner_account(bound.owner_id):
            if holder.scope is Scope.OWNER or holder.agent_id == bound.agent_id:
                usable.append(Candidate(stored))
        elif holder.scope is Scope.ORGANIZATION and holder.owned_by == bound.account:
            share = shared.get(stored.key.provider_key_id)
            if share is not None and share.share.organization_id == holder.owned_by.party_id:
                usable.append(Candidate(stored, share))
    return sorted(usable, key=_order)


def platform_keys(keys: Iterable[StoredKey]) -> list[Candidate]:
    """Return the platform's own keys in the order in which they are tried."""
    return sorted((Candidate(stored) for stored in keys if stored.key.holder.scope is Scope.PLATFORM), key=_order)


def ensure_not_halted(halts: StoredHalts, binding: StoredBinding | None) -> None:
    """Raise HaltedError when the agent, its owner or its organization is halted; without an agent, the platform."""
    if not halts.covered:
        return
    if binding is None:
        halts.ensure_none((scope_of_account(PLATFORM),))
        return
    bound = binding.binding
    halts.ensure_none(
        (
            HaltScope(HaltKind.AGENT, bound.agent_id),
            scope_of_account(owner_account(bound.owner_id)),
            scope_of_account(bound.account),
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What decides whether a key serves an operation now."""

    item: LeaseItem
    operation: Operation
    can_serve: Callable[[ProviderKey, Operation, EmbeddingSpace | None], bool]
    now: datetime

    def __call__(self, candidate: Candidate) -> Verdict:
        """Return whether the key would be leased, whatever was tried before it."""
        key = candidate.key.key
        if candidate.share is not None and not candidate.share.share.covers(self.operation):
            return Verdict.NOT_SHARED
        is_wanted = not self.item.providers or key.provider in self.item.providers
        if not is_wanted or not self.can_serve(key, self.operation, self.item.required_space):
            return Verdict.CANNOT_SERVE
        if key.state not in LEASED_STATES or key.is_expired(self.now):
            return Verdict.NOT_WORKING
        return Verdict.COOLING_DOWN if key.is_cooling_down(self.now) else Verdict.USABLE


def select(
    judge: Judge, *, candidates: Sequence[Candidate], binding: StoredBinding | None, halts: StoredHalts
) -> Selection | NoUsableKey:
    """Return the first of `candidates` that serves the operation now, or why there is none.

    Raises:
        HaltedError: an emergency stop covers the agent, the platform, or the provider of the key whose turn it is.
    """
    ensure_not_halted(halts, binding)
    account = PLATFORM if binding is None else binding.binding.account
    present = [each for each in candidates if each.key.key.state is not KeyState.REVOKED]
    verdicts = [judge(each) for each in present]
    resting = []
    for candidate, verdict in zip(present, verdicts, strict=True):
        if verdict not in _WORKING:
            continue
        # Also of a key that was tried already or is resting: what comes after it, in the end the platform's money, must
        # not take the place of what is stopped.
        if halts.covered:
            halts.ensure_none((candidate.provider_scope,))
        if candidate.provider_key_id in judge.item.excluded_key_ids:
            continue
        if verdict is Verdict.USABLE:
            return Selection(key=candidate.key, account=account, binding=binding, share=candidate.share)
        resting.append(candidate.key)
    return NoUsableKey(
        cause=_cause(verdicts),
        account=account,
        binding=binding,
        retry_after=_soonest(resting, judge.now),
    )


def select_for_validation(
    purpose: ValidationPurpose, key: StoredKey | None, bindings: Iterable[StoredBinding], halts: StoredHalts
) -> Selection:
    """Return the one key that is to be tested, in whatever state but REVOKED.

    The account that is limited is the one that the owner's agents belong to; the owner's own while none is bound. A key
    of an organization is tested on the organization's account.

    Raises:
        ProviderKeyNotFoundError: there is no such key, or it is another owner's.
        ProviderKeyRevokedError: the key is revoked.
        HaltedError: an emergency stop covers it.
    """
    acting_for = purpose.acting_for
    if key is None or (acting_for is not None and not acting_for.may_act_on(key.key.holder.owned_by)):
        message = "there is no such provider key"
        raise ProviderKeyNotFoundError(message, provider_key_id=purpose.provider_key_id)
    key.key.ensure_not_revoked()
    holder = key.key.holder
    binding = next((each for each in bindings if _is_of(each, holder)), None)
    account = holder.owned_by if binding is None else binding.binding.account
    scopes = [scope_of_account(holder.owned_by), scope_of_account(account), Candidate(key).provider_scope]
    if holder.agent_id:
        scopes.append(HaltScope(HaltKind.AGENT, holder.agent_id))
    halts.ensure_none(scopes)
    is_organizations = holder.owned_by.kind is AccountKind.ORGANIZATION
    tester_id = acting_for.owner_id if is_organizations and acting_for is not None else ""
    return Selection(key=key, account=account, binding=binding, tester_id=tester_id)


@dataclass(slots=True)
class DistinctKeyBound:
    """How many distinct keys each caller may lease within a minute. A stolen certificate must not drain the vault.

    It is kept in memory: with several replicas a caller can reach the bound on each.
    """

    keys_max: int
    window: timedelta = timedelta(minutes=1)
    _seen: dict[str, dict[str, float]] = field(default_factory=dict)

    def admit(self, caller: str, provider_key_id: str, now: float) -> None:
        """Count a lease of this key by this caller at monotonic time `now`.

        Raises:
            LeaseBoundReachedError: it would be one distinct key too many.
        """
        seen = self._seen.setdefault(caller, {})
        self._forget(seen, now - self.window.total_seconds())
        if seen.pop(provider_key_id, None) is None and len(seen) >= self.keys_max:
            message = "this caller leased as many distinct keys within a minute as one caller may"
            error = LeaseBoundReachedError(message, keys_max=self.keys_max)
            oldest = next(iter(seen.values()))
            error.retry_after = timedelta(seconds=oldest - now) + self.window
            raise error
        # Taken out above and put in again: the dictionary stays in the order of the last lease.
        seen[provider_key_id] = now

    @staticmethod
    def _forget(seen: dict[str, float], oldest: float) -> None:
        while seen:
            provider_key_id, at = next(iter(seen.items()))
            if at > oldest:
                return
            del seen[provider_key_id]


def _is_of(binding: StoredBinding, holder: Holder) -> bool:
    is_agents = holder.agent_id in ("", binding.binding.agent_id)
    return is_agents and holder.owned_by == owner_account(binding.binding.owner_id)


def _is_in_force(share: StoredShare, binding: StoredBinding) -> bool:
    return share.share.agent_id == binding.binding.agent_id and not share.share.is_ended


def _order(candidate: Candidate) -> tuple[int, int, str]:
    # Ids are UUIDv7, so the last part is the age.
    key = candidate.key.key
    return (int(key.holder.scope), key.priority, key.provider_key_id)


def _cause(verdicts: Sequence[Verdict]) -> NoKeyCause:
    if not verdicts:
        return NoKeyCause.NO_KEY
    is_able = any(verdict in _ABLE for verdict in verdicts)
    return NoKeyCause.NO_USABLE_KEY if is_able else NoKeyCause.NO_KEY_FOR_OPERATION


def _soonest(resting: Sequence[StoredKey], now: datetime) -> timedelta | None:
    times = [stored.key.cool_down_until for stored in resting if stored.key.cool_down_until is not None]
    return min(times) - now if times else None


_WORKING: Final = frozenset({Verdict.USABLE, Verdict.COOLING_DOWN})
_ABLE: Final = _WORKING | {Verdict.NOT_WORKING}
