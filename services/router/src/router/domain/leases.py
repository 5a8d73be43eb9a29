"""Leases as the Router sees them: what was asked of KeyVault, and what it answered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from catalogue.models import EmbeddingSpace, Operation
from router.domain.operations import Principal
from servicekit.secrets import Secret


class AccountKind(StrEnum):
    """Who an account belongs to."""

    OWNER = "owner"
    ORGANIZATION = "organization"
    PLATFORM = "platform"


@dataclass(frozen=True, slots=True)
class Account:
    """Who is limited and pays; the platform's account has no id."""

    kind: AccountKind
    id: str = ""


class Payer(StrEnum):
    """Whose provider key a call uses."""

    OWNER = "owner"
    ORGANIZATION = "organization"
    PLATFORM = "platform"


class PlatformCause(StrEnum):
    """Why the platform is asked to pay; the first three are also why there is no key to lease."""

    NO_KEY = "no_key"
    NO_KEY_FOR_OPERATION = "no_key_for_operation"
    NO_USABLE_KEY = "no_usable_key"
    OPERATION_IS_PLATFORMS = "operation_is_platforms"
    CALLER_REQUESTED = "caller_requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseQuery:
    """What a lease is wanted for: an agent's operation, the platform's, or the validation of one key.

    Attributes:
        operation: The operation; KEY_VALIDATION goes with ``key_id``.
        agent_id: The agent; empty for a platform key and for a validation.
        acting_for: On whose behalf; required for a validation.
        key_id: The key to validate; empty otherwise.
        excluded_key_ids: Keys that were tried already.
        required_space: Only keys that serve this space.
    """

    operation: Operation
    agent_id: str = ""
    acting_for: Principal | None = None
    key_id: str = ""
    excluded_key_ids: tuple[str, ...] = ()
    required_space: EmbeddingSpace | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedModel:
    """The model that a key's mapping names for an operation, with what the owner declares of it."""

    model: str
    tier: str = ""
    capabilities: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()
    context_tokens: int = 0
    dimensions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Lease:
    """A short-lived copy of a key for this process.

    Attributes:
        authority_index: A change of authority that touches the lease and has a higher index ends it.
        request_time: When it was asked for, on the monotonic clock: its life counts from then.
        life: How long it may be used at most.
        is_strict: One provider call a lease, nothing is kept.
    """

    lease_id: str
    key_id: str
    key_version: int
    provider: str
    base_url: str
    secret: Secret
    account: Account
    owner_id: str
    agent_id: str
    owned_by: Account
    mapping: dict[Operation, MappedModel]
    authority_index: int
    binding_index: int
    request_time: float
    life: timedelta
    is_strict: bool = False

    @property
    def payer(self) -> Payer:
        """Return who pays: the key's owner decides."""
        return Payer(self.owned_by.kind.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class DueKey:
    """A key that KeyVault wants tested, with the lease for it.

    Attributes:
        is_free: Nothing may be asked of the provider that costs its owner anything.
    """

    lease: Lease
    is_free: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NoKey:
    """There is no key to lease; the platform's policy may pay instead."""

    cause: PlatformCause
    account: Account | None
    owner_id: str
    agent_id: str
    authority_index: int
    binding_index: int
    request_time: float
    life: timedelta
    retry_after: timedelta | None = None


class OutcomeKind(StrEnum):
    """How a provider call on a lease went, as KeyVault wants to know it."""

    SUCCEEDED = "succeeded"
    KEY_REJECTED = "key_rejected"
    NO_CREDIT = "no_credit"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXHAUSTED = "quota_exhausted"
    CONTENT_REFUSED = "content_refused"
    BAD_REQUEST = "bad_request"
    MODEL_UNAVAILABLE = "model_unavailable"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    NO_ANSWER = "no_answer"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one provider call went."""

    lease_id: str
    key_id: str
    key_version: int
    kind: OutcomeKind
    operation: Operation
    model: str
    request_id: str
    end_time: float
    retry_after: timedelta | None = None
