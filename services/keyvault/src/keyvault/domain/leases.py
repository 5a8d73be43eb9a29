"""Which key serves an operation: the order of scopes, the reasons for none, and the bound on what one caller may drain.

The first key wins whose provider and mapping can do the operation, that works now, in the order AGENT, OWNER, then by
priority, then by age. A platform operation looks at PLATFORM keys only, a validation at the one key that it names.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from keyvault.domain.bindings import StoredBinding
from keyvault.domain.errors import (
    AgentNotFoundError,
    LeaseBoundReachedError,
    ProviderKeyNotFoundError,
)
from keyvault.domain.ownership import PLATFORM, Account, Holder, Principal, Scope, owner_account
from keyvault.domain.provider_keys import LEASED_STATES, KeyState, Operation, StoredKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from keyvault.domain.provider_keys import ProviderKey


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """Where vectors can be compared with each other."""

    maker: str
    model: str
    dimensions: int


@dataclass(frozen=True, slots=True)
class AgentPurpose:
    """An operation of an agent, on a key of its owner's."""

    agent_id: str
    operation: Operation
    acting_for: Principal | None


@dataclass(frozen=True, slots=True)
class PlatformPurpose:
    """An operation on the platform's key."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class ValidationPurpose:
    """The test call of one key."""

    provider_key_id: str
    acting_for: Principal


Purpose = AgentPurpose | PlatformPurpose | ValidationPurpose


@dataclass(frozen=True, slots=True)
class LeaseItem:
    """One lease asked for, and which keys will not do."""

    purpose: Purpose
    providers: frozenset[str] = frozenset()
    excluded_key_ids: frozenset[str] = frozenset()
    required_space: EmbeddingSpace | None = None


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
        """Return the agent's owner, or nothing when no agent is concerned."""
        return "" if self.binding is None else self.binding.binding.owner_id


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


def agents_keys(binding: StoredBinding, keys: Iterable[StoredKey]) -> list[StoredKey]:
    """Return those of `keys` that the bound agent may use, in the order in which they are tried.

    A key of scope AGENT needs the same agent *and* the same owner: an agent that was moved leaves its keys behind.
    """
    bound = binding.binding
    usable = [
        stored
        for stored in keys
        if stored.key.holder.owned_by == owner_account(bound.owner_id)
        and (stored.key.holder.scope is Scope.OWNER or stored.key.holder.agent_id == bound.agent_id)
    ]
    return sorted(usable, key=_order)


def platform_keys(keys: Iterable[StoredKey]) -> list[StoredKey]:
    """Return the platform's own keys in the order in which they are tried."""
    return sorted((stored for stored in keys if stored.key.holder.scope is Scope.PLATFORM), key=_order)


def select(
    item: LeaseItem,
    operation: Operation,
    *,
    candidates: Sequence[StoredKey],
    binding: StoredBinding | None,
    can_serve: Callable[[ProviderKey, Operation, EmbeddingSpace | None], bool],
    now: datetime,
) -> Selection | NoUsableKey:
    """Return the first of `candidates` that serves `operation` now, or why there is none."""
    account = PLATFORM if binding is None else binding.binding.account
    present = [stored for stored in candidates if stored.key.state is not KeyState.REVOKED]
    able = [
        stored
        for stored in present
        if (not item.providers or stored.key.provider in item.providers)
        and can_serve(stored.key, operation, item.required_space)
    ]
    working = [
        stored
        for stored in able
        if stored.key.state in LEASED_STATES and stored.key.provider_key_id not in item.excluded_key_ids
    ]
    for stored in working:
        if not stored.key.is_cooling_down(now):
            return Selection(key=stored, account=account, binding=binding)
    return NoUsableKey(
        cause=_cause(present, able),
        account=account,
        binding=binding,
        retry_after=_soonest(working, now),
    )


def select_for_validation(
    purpose: ValidationPurpose, key: StoredKey | None, bindings: Iterable[StoredBinding]
) -> Selection:
    """Return the one key that is to be tested, in whatever state but REVOKED.

    The account that is limited is the one that the owner's agents belong to; the owner's own while none is bound.

    Raises:
        ProviderKeyNotFoundError: there is no such key, or it is another owner's.
        ProviderKeyRevokedError: the key is revoked.
    """
    if key is None or key.key.holder.owned_by != purpose.acting_for.account:
        message = "there is no such provider key"
        raise ProviderKeyNotFoundError(message, provider_key_id=purpose.provider_key_id)
    key.key.ensure_not_revoked()
    holder = key.key.holder
    binding = next((each for each in bindings if _is_of(each, holder)), None)
    account = holder.owned_by if binding is None else binding.binding.account
    return Selection(key=key, account=account, binding=binding)


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


def _order(stored: StoredKey) -> tuple[int, int, str]:
    # Ids are UUIDv7, so the last part is the age.
    return (int(stored.key.holder.scope), stored.key.priority, stored.key.provider_key_id)


def _cause(present: Sequence[StoredKey], able: Sequence[StoredKey]) -> NoKeyCause:
    if not present:
        return NoKeyCause.NO_KEY
    return NoKeyCause.NO_USABLE_KEY if able else NoKeyCause.NO_KEY_FOR_OPERATION


def _soonest(working: Sequence[StoredKey], now: datetime) -> timedelta | None:
    times = [stored.key.cool_down_until for stored in working if stored.key.cool_down_until is not None]
    return min(times) - now if times else None
