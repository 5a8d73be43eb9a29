"""KeyService's messages, from protobuf to what the use cases take, and back. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from byok.keyvault.v1 import key_service_pb2, provider_key_pb2
from keyvault.api.fields import (
    account_from,
    account_to,
    actor_from,
    enum_from,
    mapping_from,
    principal_from,
    route_to,
    time_from,
)
from keyvault.domain.new_keys import FieldChecks, refused
from keyvault.domain.ownership import Scope, check_identifier
from keyvault.domain.provider_keys import Custody
from keyvault.usecases.bind_agent import Binding
from keyvault.usecases.change_provider_keys import Asker
from keyvault.usecases.create_provider_key import NewKey
from keyvault.usecases.erase_owner import ErasureRequest
from keyvault.usecases.open_submission import PlainInput, SealedInput, SecretInput
from keyvault.usecases.read_provider_keys import KeyListing
from keyvault.usecases.replace_secret import SecretReplacement
from keyvault.usecases.revoke_provider_key import Revocation
from keyvault.usecases.update_provider_key import KeyUpdate
from servicekit.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from keyvault.domain.bindings import StoredBinding
    from keyvault.domain.erasures import Erasure
    from keyvault.domain.provider_keys import StoredKey
    from keyvault.domain.submitted_secrets import Adjustment
    from servicekit.identity import Caller


def new_key_from(request: key_service_pb2.CreateKeyRequest, caller: Caller) -> NewKey:
    """Return what CreateKey asks for; complaints of several fields come together."""
    checks = FieldChecks()
    acting_for = checks.run(lambda: principal_from(request.acting_for, caller))
    actor = checks.run(lambda: actor_from(request.actor))
    scope = checks.run(lambda: enum_from(Scope, request.scope, "scope"))
    mapping = checks.run(lambda: mapping_from(request.mapping))
    custody = checks.run(lambda: _custody_from(request.custody))
    expire_time = checks.run(lambda: time_from(request.expire_time, "expire_time"))
    secret_input = checks.run(lambda: _secret_from(request))
    checks.conclude()
    if acting_for is None or scope is None or secret_input is None:
        raise AssertionError("a check that returned nothing did not complain")
    return NewKey(
        request_id=request.request_id,
        asker=Asker(caller=caller.uri, actor=actor or "", acting_for=acting_for),
        scope=scope,
        agent_id=request.agent_id,
        organization_id=request.organization_id,
        provider=request.provider,
        base_url=request.base_url,
        label=request.label,
        priority=request.priority if request.HasField("priority") else None,
        mapping=mapping or (),
        custody=custody or Custody.CACHED,
        secret_input=secret_input,
        expire_time=expire_time if request.HasField("expire_time") else None,
    )


def listing_from(request: key_service_pb2.ListKeysRequest, caller: Caller) -> KeyListing:
    """Return what ListKeys asks for."""
    return KeyListing(
        acting_for=principal_from(request.acting_for, caller),
        agent_id=request.agent_id,
        provider=request.provider,
        include_revoked=request.include_revoked,
        page_size=request.page_size,
        page_token=request.page_token,
        organization_id=request.organization_id,
    )


def update_from(request: key_service_pb2.UpdateKeyRequest, caller: Caller) -> KeyUpdate:
    """Return what UpdateKey asks for."""
    return KeyUpdate(
        request_id=request.request_id,
        asker=_asker_from(request, caller),
        provider_key_id=request.key_id,
        etag=request.etag,
        fields=frozenset(request.update_mask.paths),
        label=request.label,
        priority=request.priority,
        mapping=mapping_from(request.mapping),
        custody=_custody_from(request.custody),
        expire_time=time_from(request.expire_time, "expire_time") if request.HasField("expire_time") else None,
    )


def replacement_from(request: key_service_pb2.ReplaceKeySecretRequest, caller: Caller) -> SecretReplacement:
    """Return what ReplaceKeySecret asks for."""
    return SecretReplacement(
        request_id=request.request_id,
        asker=_asker_from(request, caller),
        provider_key_id=request.key_id,
        etag=request.etag,
        base_url=request.base_url,
        secret_input=_secret_from(request),
    )


def revocation_from(request: key_service_pb2.RevokeKeyRequest, caller: Caller) -> Revocation:
    """Return what RevokeKey asks for."""
    return Revocation(
        request_id=request.request_id,
        asker=_asker_from(request, caller),
        provider_key_id=request.key_id,
        reason=request.reason,
    )


def erasure_from(request: key_service_pb2.EraseOwnerRequest, caller: Caller) -> ErasureRequest:
    """Return what EraseOwner asks for."""
    return ErasureRequest(
        request_id=request.request_id,
        asker=_asker_from(request, caller),
        owner_id=check_identifier("owner_id", request.owner_id),
    )


def erasure_to(erasure: Erasure, now: datetime) -> key_service_pb2.Erasure:
    """Return how far an erasure has come."""
    return key_service_pb2.Erasure(
        owner_id=erasure.owner_id,
        state=int(erasure.state(now)),  # type: ignore[arg-type]  # the numbers are the contract's own
        erased_keys=erasure.erased_keys,
        create_time=timestamp_to(erasure.create_time),
        backups_expire_time=timestamp_to(erasure.backups_expire_time),
        audit_index=erasure.begin_index,
    )


def binding_from(request: key_service_pb2.BindAgentRequest, caller: Caller) -> Binding:
    """Return what BindAgent asks for."""
    expected = (
        account_from(request.expected_account, "expected_account") if request.HasField("expected_account") else None
    )
    return Binding(
        request_id=request.request_id,
        caller=caller.uri,
        actor=actor_from(request.actor),
        agent_id=request.agent_id,
        owner_id=request.owner_id,
        account=account_from(request.account, "account"),
        expected_account=expected,
    )


def key_to(stored: StoredKey) -> provider_key_pb2.ProviderKey:
    """Return a key as its owner sees it."""
    key = stored.key
    return provider_key_pb2.ProviderKey(
        key_id=key.provider_key_id,
        scope=int(key.holder.scope),  # type: ignore[arg-type]  # the numbers are the contract's own
        owned_by=account_to(key.holder.owned_by),
        agent_id=key.holder.agent_id,
        provider=key.provider,
        base_url=key.base_url,
        label=key.label,
        priority=key.priority,
        mapping=[route_to(route) for route in key.mapping],
        custody=int(key.custody),  # type: ignore[arg-type]  # as above
        state=int(key.state),  # type: ignore[arg-type]  # as above
        state_reason=key.state_reason,
        cool_down_until_time=timestamp_to(key.cool_down_until),
        key_version=key.key_version,
        fingerprint=key.fingerprint,
        secret_suffix=key.secret_suffix,
        validated_models=key.validated_models,
        validated_operations=[int(operation) for operation in key.validated_operations],  # type: ignore[misc]  # as above
        create_time=timestamp_to(key.create_time),
        update_time=timestamp_to(key.update_time),
        validate_time=timestamp_to(key.validate_time),
        etag=stored.etag,
        expire_time=timestamp_to(key.expire_time),
    )


def binding_to(stored: StoredBinding) -> provider_key_pb2.AgentBinding:
    """Return a binding as a message."""
    binding = stored.binding
    return provider_key_pb2.AgentBinding(
        agent_id=binding.agent_id,
        owner_id=binding.owner_id,
        account=account_to(binding.account),
        binding_version=binding.binding_version,
        authority_index=stored.seal.audit_index,
    )


def adjustments_to(adjustments: Iterable[Adjustment]) -> list[key_service_pb2.Adjustment]:
    """Return what was put right."""
    return [key_service_pb2.Adjustment(field=each.field, description=each.description) for each in adjustments]


def timestamp_to(time: datetime | None) -> Timestamp | None:
    """Return `time` as a message; an unset time stays unset."""
    if time is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def _asker_from(
    request: key_service_pb2.UpdateKeyRequest
    | key_service_pb2.ReplaceKeySecretRequest
    | key_service_pb2.RevokeKeyRequest
    | key_service_pb2.EraseOwnerRequest,
    caller: Caller,
) -> Asker:
    return Asker(
        caller=caller.uri, actor=actor_from(request.actor), acting_for=principal_from(request.acting_for, caller)
    )


def _custody_from(value: int) -> Custody | None:
    return None if value == 0 else enum_from(Custody, value, "custody")


def _secret_from(request: key_service_pb2.CreateKeyRequest | key_service_pb2.ReplaceKeySecretRequest) -> SecretInput:
    kind = request.WhichOneof("secret_input")
    if kind == "plaintext":
        return PlainInput(Secret(request.plaintext) if request.plaintext else None)
    if kind == "sealed":
        return SealedInput(request.sealed.submission_key_id, request.sealed.ciphertext)
    raise refused("secret_input", "REQUIRED", "Send the provider's key, as plaintext or sealed.")
