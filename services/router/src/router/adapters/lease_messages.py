"""Leases, outcomes and KeyVault's refusals, between protobuf and the domain. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest

from byok.keyvault.v1 import lease_pb2, lease_service_pb2, provider_key_pb2
from router.domain.leases import Lease, MappedModel, NoKey, Outcome, OutcomeKind, PlatformCause
from router.domain.refusals import (
    AgentNotFoundError,
    HaltedError,
    KeyCorruptError,
    ProviderKeyNotFoundError,
    ProviderKeyRevokedError,
    RouterOverloadedError,
    SuiteUnavailableError,
)
from router.messages import OPERATIONS, account_of, principal_message, space_message
from router.ports import KeyVerdict
from servicekit.errors import DomainError, FieldViolation, InvalidArgumentError
from servicekit.secrets import Secret

if TYPE_CHECKING:
    from catalogue.models import Operation
    from router.domain.leases import LeaseQuery
    from servicekit.wire import RemoteError

_OPERATIONS_BACK: Final = {value: each for each, value in OPERATIONS.items()}
_CAUSES: Final = {
    lease_pb2.NO_KEY_CAUSE_NO_KEY: PlatformCause.NO_KEY,
    lease_pb2.NO_KEY_CAUSE_NO_KEY_FOR_OPERATION: PlatformCause.NO_KEY_FOR_OPERATION,
}
_OUTCOMES: Final = {each: lease_service_pb2.OutcomeKind.Value(f"OUTCOME_KIND_{each.name}") for each in OutcomeKind}
VERDICTS: Final = {
    each: lease_service_pb2.ValidationVerdict.Value(f"VALIDATION_VERDICT_{each.name}") for each in KeyVerdict
}
_RETRY_AFTER_MAX: Final = timedelta(hours=24)


def lease_item(query: LeaseQuery) -> lease_pb2.LeaseItem:
    """Return the query as a message."""
    item = lease_pb2.LeaseItem(excluded_key_ids=query.excluded_key_ids)
    if query.required_space is not None:
        item.required_space.CopyFrom(space_message(query.required_space))
    if query.key_id:
        item.validation.key_id = query.key_id
        if query.acting_for is not None:
            item.validation.acting_for.CopyFrom(principal_message(query.acting_for))
    elif query.agent_id:
        item.agent.agent_id = query.agent_id
        item.agent.operation = OPERATIONS[query.operation]
        if query.acting_for is not None:
            item.agent.acting_for.CopyFrom(principal_message(query.acting_for))
    else:
        item.platform.operation = OPERATIONS[query.operation]
    return item


def lease_of(
    message: lease_pb2.Lease, sealed: lease_pb2.SealedLease, *, query: LeaseQuery, request_time: float
) -> Lease:
    """Return the lease that a result and its sealed part make together.

    Raises:
        KeyCorruptError: The two do not belong together, or name no account.
    """
    # The sealed part is what KeyVault authenticated; the open part must be about the same key.
    claimed = (message.lease_id, message.key_id, message.key_version, message.provider)
    if claimed != (sealed.lease_id, sealed.key_id, sealed.key_version, sealed.provider):
        raise KeyCorruptError(provider_key_id=message.key_id)
    try:
        account = account_of(message.account)
        owned_by = account_of(message.owned_by)
    except ValueError:
        raise KeyCorruptError(provider_key_id=message.key_id) from None
    return Lease(
        lease_id=message.lease_id,
        key_id=message.key_id,
        key_version=message.key_version,
        provider=sealed.provider,
        base_url=sealed.base_url,
        secret=Secret(sealed.secret),
        account=account,
        owner_id=message.owner_id,
        agent_id=query.agent_id,
        owned_by=owned_by,
        mapping=dict(_mapped(route) for route in message.mapping if route.operation in _OPERATIONS_BACK),
        authority_index=message.authority_index,
        binding_index=message.binding_index,
        request_time=request_time,
        life=message.life.ToTimedelta(),
        is_strict=message.custody == provider_key_pb2.CUSTODY_STRICT,
    )


def no_key_of(message: lease_pb2.NoUsableKey, *, query: LeaseQuery, request_time: float) -> NoKey:
    """Return why there is no key."""
    has_account = message.account.WhichOneof("kind") is not None
    return NoKey(
        cause=_CAUSES.get(message.cause, PlatformCause.NO_USABLE_KEY),
        account=account_of(message.account) if has_account else None,
        owner_id=message.owner_id,
        agent_id=query.agent_id,
        authority_index=message.authority_index,
        binding_index=message.binding_index,
        request_time=request_time,
        life=message.life.ToTimedelta(),
        retry_after=message.retry_after.ToTimedelta() if message.HasField("retry_after") else None,
    )


def outcome_message(outcome: Outcome, *, now: float) -> lease_service_pb2.LeaseOutcome:
    """Return an outcome as a message, aged on our own clock."""
    message = lease_service_pb2.LeaseOutcome(
        lease_id=outcome.lease_id,
        key_id=outcome.key_id,
        key_version=outcome.key_version,
        kind=_OUTCOMES[outcome.kind],
        operation=OPERATIONS[outcome.operation],
        model=outcome.model,
        request_id=outcome.request_id,
        age=duration(timedelta(seconds=max(0.0, now - outcome.end_time))),
    )
    if outcome.retry_after is not None:
        message.retry_after.CopyFrom(duration(min(outcome.retry_after, _RETRY_AFTER_MAX)))
    return message


def refusal_by_keyvault(error: RemoteError, *, agent_id: str = "", key_id: str = "") -> DomainError:
    """Return what KeyVault's refusal means for our caller."""
    match error.reason:
        case "AGENT_NOT_FOUND":
            return AgentNotFoundError(agent_id=error.metadata.get("agentId", agent_id))
        case "PROVIDER_KEY_NOT_FOUND":
            return ProviderKeyNotFoundError(provider_key_id=error.metadata.get("providerKeyId", key_id))
        case "PROVIDER_KEY_REVOKED":
            return ProviderKeyRevokedError(provider_key_id=error.metadata.get("providerKeyId", key_id))
        case "HALTED":
            return HaltedError(halt_scope=error.metadata.get("haltScope", ""))
        case "ENVELOPE_CORRUPT" | "AUTHORITY_CORRUPT":
            return KeyCorruptError(provider_key_id=error.metadata.get("providerKeyId", key_id))
        case "OVERLOADED":
            return RouterOverloadedError(retry_after=error.retry_after or timedelta(seconds=1))
        case "INVALID_ARGUMENT":
            return _invalid(error)
        case _:
            return SuiteUnavailableError(service="keyvault", retry_after=error.retry_after)


def duration(value: timedelta) -> Duration:
    """Return a time span as a message."""
    message = Duration()
    message.FromTimedelta(value)
    return message


def _mapped(route: provider_key_pb2.OperationRoute) -> tuple[Operation, MappedModel]:
    return _OPERATIONS_BACK[route.operation], MappedModel(
        model=route.model,
        tier=route.tier,
        capabilities=frozenset(route.capabilities),
        features=frozenset(route.features),
        context_tokens=route.context_window_tokens,
        dimensions=route.dimensions,
    )


def _invalid(error: RemoteError) -> InvalidArgumentError:
    details = error.detail(BadRequest)
    violations = [
        FieldViolation(field=each.field, reason="REFUSED_BY_KEYVAULT", description=each.description)
        for each in (details.field_violations if details else ())
    ]
    return InvalidArgumentError(
        violations=violations or [FieldViolation(field="", reason="REFUSED_BY_KEYVAULT", description=error.message)]
    )
