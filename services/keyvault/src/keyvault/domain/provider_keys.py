"""A provider key without its secret: its fields, and the canonical record that is authenticated.

What moves a key from one state to another is drawn in `key_states`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
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
    EXPIRED = 6
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
    state_time: datetime | None = None
    """When it came into its state; unset for a key that is as it was created."""
    rejected_time: datetime | None = None
    """When the provider first rejected it since it last worked."""
    expire_time: datetime | None = None
    """When it ends by itself; unset for never."""

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

    def is_expired(self, now: datetime) -> bool:
        """Return whether its time has come. It ends at that moment, whatever its state says by then."""
        return self.state is KeyState.EXPIRED or (self.expire_time is not None and self.expire_time <= now)

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
            time_field(key.cool_down_until),
            key.key_version,
            key.fingerprint,
            key.secret_suffix,
            encode_fields(_LIST_LABEL, key.validated_models),
            encode_fields(_LIST_LABEL, [int(operation) for operation in key.validated_operations]),
            time_field(key.create_time),
            time_field(key.update_time),
            time_field(key.validate_time),
            time_field(key.state_time),
            time_field(key.rejected_time),
            time_field(key.expire_time),
        ),
    )


def decode_key(record: bytes) -> ProviderKey:
    """Return the key in a canonical record.

    Raises:
        CanonicalFormError: these bytes are not such a record.
    """
    try:
        return _decode_key(FieldReader(RECORD_LABEL, record))
    except (ValueError, OverflowError) as error:
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
        state_time=_time(read.number()),
        rejected_time=_time(read.number()),
        expire_time=_time(read.number()),
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


def time_field(time: datetime | None) -> int:
    """Return `time` as a field of a canonical form, 0 for none."""
    return 0 if time is None else (time - _EPOCH) // timedelta(microseconds=1)


def _time(microseconds: int) -> datetime | None:
    return None if microseconds == 0 else _EPOCH + timedelta(microseconds=microseconds)
