"""A provider key without its secret: its fields, its states, and the canonical record that is authenticated.

States (cooling down is a time, not a state)::

    PENDING_VALIDATION ──valid──▶ ACTIVE ◀──succeeded, valid── FAILING
            │                       │ └──────inconclusive──────▶ │
            ├──rejected──▶ INVALID ◀┴────────rejected────────────┤
            └──no credit─▶ NO_CREDIT ◀───────no credit───────────┘
    INVALID, NO_CREDIT ──valid──▶ ACTIVE       any but REVOKED ──secret replaced──▶ PENDING_VALIDATION
    any ──revoked──▶ REVOKED, from which nothing leads

ACTIVE and FAILING are leased for operations; every state but REVOKED is leased for validation.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.authority import RowSeal

if TYPE_CHECKING:
    from collections.abc import Sequence

from keyvault.domain.canonical import CanonicalFormError, FieldReader, decode_fields, encode_fields, field_int
from keyvault.domain.envelope import EnvelopeContext
from keyvault.domain.errors import EtagMismatchError, ProviderKeyRevokedError
from keyvault.domain.ownership import Account, AccountKind, Holder, Scope

RECORD_LABEL: Final = "byok/authority/v1/provider-key"
_ROUTE_LABEL: Final = "byok/authority/v1/route"
_LIST_LABEL: Final = "byok/authority/v1/list"
PRIORITY_DEFAULT: Final = 100
PRIORITY_MAX: Final = 1000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Operation(enum.IntEnum):
    """What an AI call is for. The numbers are those of `byok.type.v1.Operation` and are stored."""

    GUARDRAIL_EVALUATION = 1
    EMBEDDING_GENERATION = 2
    TASK_DECOMPOSITION = 3
    EVIDENCE_VERIFICATION = 4
    SAFETY_ESCALATION = 5
    CHAT = 6
    KEY_VALIDATION = 7


class KeyState(enum.IntEnum):
    """What is known of a key's health. The numbers are stored: never renumber."""

    PENDING_VALIDATION = 1
    ACTIVE = 2
    FAILING = 3
    NO_CREDIT = 4
    INVALID = 5
    REVOKED = 7


class Custody(enum.IntEnum):
    """How long a Router may keep a lease. The numbers are stored: never renumber."""

    CACHED = 1
    STRICT = 2


class Outcome(enum.IntEnum):
    """How a provider call went, as far as a key is concerned."""

    SUCCEEDED = 1
    KEY_REJECTED = 2
    NO_CREDIT = 3
    RATE_LIMITED = 4
    QUOTA_EXHAUSTED = 5
    CONTENT_REFUSED = 6
    BAD_REQUEST = 7
    MODEL_UNAVAILABLE = 8
    PROVIDER_UNAVAILABLE = 9
    NO_ANSWER = 10
    CANCELLED = 11


class Verdict(enum.IntEnum):
    """What a test call found."""

    VALID = 1
    REJECTED = 2
    NO_CREDIT = 3
    INCONCLUSIVE = 4


LEASED_STATES: Final = frozenset({KeyState.ACTIVE, KeyState.FAILING})


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRoute:
    """Which model serves an operation on a key, and what the owner declares or allows for it."""

    operation: Operation
    model: str
    tier: str = ""
    capabilities: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    context_window_tokens: int = 0
    dimensions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderKey:
    """One provider key as it stands after one audit entry. It is replaced whole, never edited."""

    provider_key_id: str
    holder: Holder
    provider: str
    base_url: str
    label: str
    priority: int
    mapping: tuple[OperationRoute, ...]
    custody: Custody
    state: KeyState
    state_reason: str
    cool_down_until: datetime | None
    key_version: int
    fingerprint: str
    secret_suffix: str
    validated_models: tuple[str, ...]
    validated_operations: tuple[Operation, ...]
    create_time: datetime
    update_time: datetime
    validate_time: datetime | None

    def route(self, operation: Operation) -> OperationRoute | None:
        """Return the route that the mapping names for `operation`, or None when the catalogue's default serves it."""
        return next((route for route in self.mapping if route.operation is operation), None)

    def envelope_context(self, deployment: str) -> EnvelopeContext:
        """Return what the envelope of the present secret is bound to."""
        return EnvelopeContext(
            deployment=deployment,
            provider_key_id=self.provider_key_id,
            key_version=self.key_version,
            holder=self.holder,
            provider=self.provider,
            base_url=self.base_url,
        )

    def is_cooling_down(self, now: datetime) -> bool:
        """Return whether no call may be made before a time that is still to come."""
        return self.cool_down_until is not None and self.cool_down_until > now

    def ensure_not_revoked(self) -> None:
        """Raise ProviderKeyRevokedError when the key is revoked."""
        if self.state is KeyState.REVOKED:
            message = "the provider key is revoked; add a new one"
            raise ProviderKeyRevokedError(message, provider_key_id=self.provider_key_id)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A provider key with the seal that authenticates it."""

    key: ProviderKey
    seal: RowSeal

    @property
    def etag(self) -> str:
        """Return a word that changes with every change of the key."""
        return f"{self.seal.audit_index:x}"

    def ensure_etag(self, etag: str) -> None:
        """Raise EtagMismatchError when the caller read another state of the key; an empty etag overwrites."""
        if etag and etag != self.etag:
            message = "the provider key changed since it was read; read it again"
            raise EtagMismatchError(message, provider_key_id=self.key.provider_key_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoolDowns:
    """How long a key rests when the provider does not say, and the longest that it is believed."""

    rate_limited: timedelta = timedelta(seconds=5)
    quota_exhausted: timedelta = timedelta(minutes=15)
    longest: timedelta = timedelta(hours=24)
    step: timedelta = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """What a test call found, for one version of a key."""

    key_version: int
    verdict: Verdict
    explanation: str
    models: tuple[str, ...]
    operations: tuple[Operation, ...]


def after_validation(key: ProviderKey, report: ValidationReport, now: datetime) -> ProviderKey:
    """Return the key after a test call; a report on an older secret changes nothing.

    Raises:
        ProviderKeyRevokedError: the key is revoked.
    """
    key.ensure_not_revoked()
    if report.key_version != key.key_version:
        return key
    state = _VERDICT_STATES.get(report.verdict) or _INCONCLUSIVE_STATES.get(key.state, key.state)
    is_valid = report.verdict is Verdict.VALID
    return replace(
        key,
        state=state,
        state_reason=report.explanation,
        cool_down_until=None if is_valid else key.cool_down_until,
        validated_models=report.models if is_valid else key.validated_models,
        validated_operations=report.operations if is_valid else key.validated_operations,
        validate_time=now,
        update_time=now,
    )


def after_outcome(key: ProviderKey, outcome: Outcome, *, rest: timedelta | None, now: datetime) -> ProviderKey:
    """Return the key after one provider call; `rest` is how long it must not be used, from `now`.

    A revoked key stays as it is, and so does one on which the outcome says nothing.
    """
    if key.state is KeyState.REVOKED:
        return key
    if outcome is Outcome.SUCCEEDED and key.state is KeyState.FAILING:
        return replace(key, state=KeyState.ACTIVE, state_reason="", update_time=now)
    if outcome in _OUTCOME_STATES and key.state is not _OUTCOME_STATES[outcome][0]:
        state, reason = _OUTCOME_STATES[outcome]
        return replace(key, state=state, state_reason=reason, update_time=now)
    if rest is not None:
        return replace(key, cool_down_until=now + rest, update_time=now)
    return key


def rest_after(
    key: ProviderKey,
    outcome: Outcome,
    *,
    retry_after: timedelta | None,
    age: timedelta,
    now: datetime,
    rules: CoolDowns,
) -> timedelta | None:
    """Return how long the key must rest from `now`, or None when the outcome asks for no longer rest than it has.

    A provider that is never believed beyond `rules.longest` cannot put a key out of use, and a step below which a
    longer rest is not worth an audit entry keeps a storm of throttled calls from filling the log.
    """
    default = {Outcome.RATE_LIMITED: rules.rate_limited, Outcome.QUOTA_EXHAUSTED: rules.quota_exhausted}.get(outcome)
    if default is None:
        return None
    rest = min(retry_after if retry_after is not None else default, rules.longest) - age
    if rest <= timedelta(0):
        return None
    if key.cool_down_until is not None and now + rest < key.cool_down_until + rules.step:
        return None
    return rest


def encode_key(key: ProviderKey) -> bytes:
    """Return the canonical record of `key`: what its authority HMAC covers, and what is stored."""
    holder = key.holder
    return encode_fields(
        RECORD_LABEL,
        (
            key.provider_key_id,
            int(holder.scope),
            int(holder.owned_by.kind),
            holder.owned_by.party_id,
            holder.agent_id,
            key.provider,
            key.base_url,
            key.label,
            key.priority,
            encode_mapping(key.mapping),
            int(key.custody),
            int(key.state),
            key.state_reason,
            _microseconds(key.cool_down_until),
            key.key_version,
            key.fingerprint,
            key.secret_suffix,
            encode_fields(_LIST_LABEL, key.validated_models),
            encode_fields(_LIST_LABEL, [int(operation) for operation in key.validated_operations]),
            _microseconds(key.create_time),
            _microseconds(key.update_time),
            _microseconds(key.validate_time),
        ),
    )


def decode_key(record: bytes) -> ProviderKey:
    """Return the key in a canonical record.

    Raises:
        CanonicalFormError: these bytes are not such a record.
    """
    try:
        return _decode_key(FieldReader(RECORD_LABEL, record))
    except ValueError as error:
        message = "the record is not that of a provider key"
        raise CanonicalFormError(message) from error


def _decode_key(read: FieldReader) -> ProviderKey:
    # Keyword arguments are evaluated in the order in which they are written, which is the order of the record.
    key = ProviderKey(
        provider_key_id=read.text(),
        holder=_decode_holder(read),
        provider=read.text(),
        base_url=read.text(),
        label=read.text(),
        priority=read.number(),
        mapping=tuple(_decode_route(route) for route in decode_fields(_LIST_LABEL, read.raw())),
        custody=Custody(read.number()),
        state=KeyState(read.number()),
        state_reason=read.text(),
        cool_down_until=_time(read.number()),
        key_version=read.number(),
        fingerprint=read.text(),
        secret_suffix=read.text(),
        validated_models=tuple(model.decode() for model in decode_fields(_LIST_LABEL, read.raw())),
        validated_operations=tuple(Operation(field_int(each)) for each in decode_fields(_LIST_LABEL, read.raw())),
        create_time=_time(read.number()) or _EPOCH,
        update_time=_time(read.number()) or _EPOCH,
        validate_time=_time(read.number()),
    )
    read.end()
    return key


def _decode_holder(read: FieldReader) -> Holder:
    scope = Scope(read.number())
    owned_by = Account(AccountKind(read.number()), read.text())
    return Holder(scope, owned_by, read.text())


def encode_mapping(mapping: Sequence[OperationRoute]) -> bytes:
    """Return the canonical bytes of a mapping."""
    return encode_fields(_LIST_LABEL, [_encode_route(route) for route in mapping])


def _encode_route(route: OperationRoute) -> bytes:
    return encode_fields(
        _ROUTE_LABEL,
        (
            int(route.operation),
            route.model,
            route.tier,
            encode_fields(_LIST_LABEL, route.capabilities),
            encode_fields(_LIST_LABEL, route.features),
            route.context_window_tokens,
            route.dimensions,
        ),
    )


def _decode_route(encoded: bytes) -> OperationRoute:
    read = FieldReader(_ROUTE_LABEL, encoded)
    route = OperationRoute(
        operation=Operation(read.number()),
        model=read.text(),
        tier=read.text(),
        capabilities=tuple(each.decode() for each in decode_fields(_LIST_LABEL, read.raw())),
        features=tuple(each.decode() for each in decode_fields(_LIST_LABEL, read.raw())),
        context_window_tokens=read.number(),
        dimensions=read.number(),
    )
    read.end()
    return route


def _microseconds(time: datetime | None) -> int:
    return 0 if time is None else (time - _EPOCH) // timedelta(microseconds=1)


def _time(microseconds: int) -> datetime | None:
    return None if microseconds == 0 else _EPOCH + timedelta(microseconds=microseconds)


_VERDICT_STATES: Final = {
    Verdict.VALID: KeyState.ACTIVE,
    Verdict.REJECTED: KeyState.INVALID,
    Verdict.NO_CREDIT: KeyState.NO_CREDIT,
}
_INCONCLUSIVE_STATES: Final = {KeyState.ACTIVE: KeyState.FAILING}
_OUTCOME_STATES: Final = {
    Outcome.KEY_REJECTED: (KeyState.INVALID, "The provider rejects the key. Replace its secret."),
    Outcome.NO_CREDIT: (
        KeyState.NO_CREDIT,
        "The provider says that the account has no credit. Top it up, then validate.",
    ),
}
