"""LeaseService's messages, from protobuf to what the use cases take, and back. Pure but for the sealing of secrets."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from google.protobuf.duration_pb2 import Duration

from byok.keyvault.v1 import lease_pb2, lease_service_pb2
from keyvault.api.errors import ERRORS
from keyvault.api.fields import account_to, enum_from, principal_from, route_to
from keyvault.api.key_mapping import timestamp_to
from keyvault.api.share_mapping import share_to
from keyvault.domain.audit_log import AuditEntry, EntryKind, IndexedEntry
from keyvault.domain.key_states import ValidationReport
from keyvault.domain.leases import (
    AgentPurpose,
    EmbeddingSpace,
    LeaseItem,
    PlatformPurpose,
    Purpose,
    ValidationPurpose,
)
from keyvault.domain.new_keys import FieldChecks, refused
from keyvault.domain.ownership import AccountKind, check_identifier
from keyvault.domain.provider_keys import KeyState, Operation, Outcome, Verdict
from keyvault.domain.sealing import parse_recipient, seal_leases
from keyvault.ports import UntoldChange
from keyvault.usecases.acquire_leases import GrantedLease, LeaseCall, NoLease
from keyvault.usecases.claim_key_checks import ClaimCall, ClaimedKeys
from keyvault.usecases.report_outcomes import ReportedOutcome
from keyvault.usecases.report_validation import ReportedValidation
from keyvault.usecases.watch_authority import Draining, Echo, Ready
from servicekit.errors import DomainError, InvalidArgumentError
from servicekit.ids import uuid7_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    from byok.type.v1 import embedding_space_pb2
    from keyvault.usecases.acquire_leases import LeaseOutcome
    from keyvault.usecases.watch_authority import Message
    from servicekit.identity import Caller

ITEMS_MAX: Final = 256
OUTCOMES_MAX: Final = 1024
EXCLUDED_MAX: Final = 50
PROVIDERS_MAX: Final = 64
INTERVAL_MAX: Final = timedelta(hours=24)
_NANOS: Final = 1_000_000_000
_CHANGES: Final = {
    EntryKind.KEY_CREATED: lease_service_pb2.AUTHORITY_CHANGE_KIND_KEY_ADDED,
    EntryKind.KEY_UPDATED: lease_service_pb2.AUTHORITY_CHANGE_KIND_KEY_UPDATED,
    EntryKind.KEY_SECRET_REPLACED: lease_service_pb2.AUTHORITY_CHANGE_KIND_KEY_REPLACED,
    EntryKind.KEY_REVOKED: lease_service_pb2.AUTHORITY_CHANGE_KIND_KEY_REVOKED,
    EntryKind.KEY_STATE_CHANGED: lease_service_pb2.AUTHORITY_CHANGE_KIND_KEY_STATE_CHANGED,
    EntryKind.AGENT_BOUND: lease_service_pb2.AUTHORITY_CHANGE_KIND_AGENT_BOUND,
    EntryKind.KEY_SHARED: lease_service_pb2.AUTHORITY_CHANGE_KIND_KEY_SHARED,
    EntryKind.KEY_UNSHARED: lease_service_pb2.AUTHORITY_CHANGE_KIND_KEY_UNSHARED,
    EntryKind.HALTS_CHANGED: lease_service_pb2.AUTHORITY_CHANGE_KIND_HALTS_CHANGED,
}


def lease_call_from(
    request: lease_service_pb2.AcquireLeasesRequest, caller: Caller
) -> tuple[LeaseCall, X25519PublicKey]:
    """Return what AcquireLeases asks for, and the process that the leases are to be sealed to.

    Raises:
        InvalidArgumentError: naming every field that does not fit.
    """
    checks = FieldChecks()
    holder = checks.run(lambda: holder_from(request.holder, "holder"))
    recipient = checks.run(lambda: parse_recipient(request.recipient_public_key, field="recipient_public_key"))
    items = checks.run(lambda: _items_from(request.items, caller))
    checks.conclude()
    if holder is None or recipient is None or items is None:
        raise AssertionError("a check that returned nothing did not complain")
    recipient_hash = hashlib.sha256(request.recipient_public_key).hexdigest()
    return LeaseCall(caller.uri, holder, recipient_hash, items), recipient


def leases_to(
    outcomes: Sequence[LeaseOutcome], *, recipient: X25519PublicKey, deployment: str, holder: str
) -> lease_service_pb2.AcquireLeasesResponse:
    """Return the answer, with the granted secrets sealed to `recipient` in one message, and wiped here."""
    sealed = lease_pb2.SealedLeases()
    results = [_result_to(outcome, sealed) for outcome in outcomes]
    ciphertext = b""
    if sealed.leases:
        plaintext = sealed.SerializeToString()
        ciphertext = seal_leases(plaintext, recipient=recipient, deployment=deployment, holder=holder)
    return lease_service_pb2.AcquireLeasesResponse(results=results, sealed_leases=ciphertext, deployment=deployment)


def claim_from(
    request: lease_service_pb2.ClaimKeysForValidationRequest, caller: Caller
) -> tuple[ClaimCall, X25519PublicKey]:
    """Return what ClaimKeysForValidation asks for, and the process that the leases are to be sealed to.

    Raises:
        InvalidArgumentError: naming every field that does not fit.
    """
    checks = FieldChecks()
    holder = checks.run(lambda: holder_from(request.holder, "holder"))
    recipient = checks.run(lambda: parse_recipient(request.recipient_public_key, field="recipient_public_key"))
    if len(request.providers) > PROVIDERS_MAX:
        checks.complain("providers", "TOO_MANY", f"Send at most {PROVIDERS_MAX}.")
    checks.conclude()
    if holder is None or recipient is None:
        raise AssertionError("a check that returned nothing did not complain")
    call = ClaimCall(
        caller=caller.uri,
        holder=holder,
        recipient_hash=hashlib.sha256(request.recipient_public_key).hexdigest(),
        claims_max=request.claims_max,
        providers=frozenset(request.providers),
    )
    return call, recipient


def claims_to(
    claimed: ClaimedKeys, *, recipient: X25519PublicKey, deployment: str, holder: str
) -> lease_service_pb2.ClaimKeysForValidationResponse:
    """Return the answer, with the secrets sealed as in AcquireLeases."""
    leases = leases_to(claimed.leases, recipient=recipient, deployment=deployment, holder=holder)
    return lease_service_pb2.ClaimKeysForValidationResponse(
        results=leases.results,
        sealed_leases=leases.sealed_leases,
        deployment=leases.deployment,
        retry_after=duration_to(claimed.retry_after),
    )


def outcomes_from(request: lease_service_pb2.ReportOutcomesRequest) -> list[ReportedOutcome | InvalidArgumentError]:
    """Return what ReportOutcomes reports; an outcome that does not fit stands for itself, not for the batch.

    Raises:
        InvalidArgumentError: the holder or the number of outcomes does not fit.
    """
    holder = holder_from(request.holder, "holder")
    if not 1 <= len(request.outcomes) <= OUTCOMES_MAX:
        raise refused("outcomes", "COUNT_OUT_OF_RANGE", f"Send 1 to {OUTCOMES_MAX} outcomes.")
    return [_outcome_from(each, holder, f"outcomes[{position}]") for position, each in enumerate(request.outcomes)]


def outcome_to(state: KeyState | DomainError) -> lease_service_pb2.LeaseOutcomeResult:
    """Return what became of one outcome."""
    if isinstance(state, DomainError):
        return lease_service_pb2.LeaseOutcomeResult(error=ERRORS.status(state))
    return lease_service_pb2.LeaseOutcomeResult(state=int(state))  # type: ignore[arg-type]  # the contract's numbers


def validation_from(request: lease_service_pb2.ReportValidationRequest, caller: Caller) -> ReportedValidation:
    """Return what ReportValidation reports."""
    return ReportedValidation(
        request_id=request.request_id,
        caller=caller.uri,
        holder=holder_from(request.holder, "holder"),
        lease_id=check_identifier("lease_id", request.lease_id),
        provider_key_id=check_identifier("key_id", request.key_id),
        report=ValidationReport(
            key_version=request.key_version,
            verdict=enum_from(Verdict, request.verdict, "verdict"),
            explanation=request.explanation,
            models=tuple(request.models),
            operations=tuple(enum_from(Operation, each, "operations") for each in request.operations),
        ),
    )


def watch_message_to(message: Message) -> lease_service_pb2.WatchAuthorityResponse:
    """Return one message of a watch."""
    if isinstance(message, IndexedEntry):
        return lease_service_pb2.WatchAuthorityResponse(change=_change_to(message))
    if isinstance(message, UntoldChange):
        # Of no kind, and naming nothing: everything that was granted before it ends.
        untold = lease_service_pb2.AuthorityChange(authority_index=message.audit_index)
        return lease_service_pb2.WatchAuthorityResponse(change=untold)
    if isinstance(message, Echo):
        echo = lease_service_pb2.WatchEcho(monotonic_ns=message.monotonic_ns, authority_index=message.authority_index)
        return lease_service_pb2.WatchAuthorityResponse(echo=echo)
    if isinstance(message, Ready):
        ready = lease_service_pb2.WatchReady(
            authority_index=message.authority_index, partition_bound=duration_to(message.partition_bound)
        )
        return lease_service_pb2.WatchAuthorityResponse(ready=ready)
    return lease_service_pb2.WatchAuthorityResponse(draining=_draining_to(message))


def holder_from(holder: str, field: str) -> str:
    """Return the id of a Router incarnation. Raises InvalidArgumentError when it is not a UUIDv7."""
    try:
        uuid7_time(holder)
    except ValueError:
        raise refused(field, "HOLDER_MALFORMED", "Send the UUIDv7 that this process made when it started.") from None
    return holder


def agent_purpose_from(agent: lease_pb2.AgentPurpose, field: str, caller: Caller) -> AgentPurpose:
    """Return an agent's operation. Raises InvalidArgumentError when a field does not fit."""
    acting_for = None
    if agent.HasField("acting_for"):
        acting_for = principal_from(agent.acting_for, caller, f"{field}.acting_for")
    return AgentPurpose(
        check_identifier(f"{field}.agent_id", agent.agent_id),
        _operation_from(agent.operation, f"{field}.operation"),
        acting_for,
    )


def space_from(space: embedding_space_pb2.EmbeddingSpace) -> EmbeddingSpace:
    """Return an embedding space."""
    return EmbeddingSpace(space.maker, space.model, space.dimensions)


def duration_to(delay: timedelta) -> Duration:
    """Return `delay` as a message."""
    duration = Duration()
    duration.FromTimedelta(delay)
    return duration


def _items_from(messages: Sequence[lease_pb2.LeaseItem], caller: Caller) -> tuple[LeaseItem, ...]:
    if not 1 <= len(messages) <= ITEMS_MAX:
        raise refused("items", "COUNT_OUT_OF_RANGE", f"Send 1 to {ITEMS_MAX} items.")
    return tuple(_item_from(item, f"items[{position}]", caller) for position, item in enumerate(messages))


def _item_from(item: lease_pb2.LeaseItem, field: str, caller: Caller) -> LeaseItem:
    if len(item.excluded_key_ids) > EXCLUDED_MAX:
        raise refused(f"{field}.excluded_key_ids", "TOO_MANY", f"Send at most {EXCLUDED_MAX}.")
    if len(item.providers) > PROVIDERS_MAX:
        raise refused(f"{field}.providers", "TOO_MANY", f"Send at most {PROVIDERS_MAX}.")
    return LeaseItem(
        purpose=_purpose_from(item, field, caller),
        providers=frozenset(item.providers),
        excluded_key_ids=frozenset(item.excluded_key_ids),
        required_space=space_from(item.required_space) if item.HasField("required_space") else None,
    )


def _purpose_from(item: lease_pb2.LeaseItem, field: str, caller: Caller) -> Purpose:
    kind = item.WhichOneof("purpose")
    if kind == "agent":
        return agent_purpose_from(item.agent, f"{field}.agent", caller)
    if kind == "platform":
        return PlatformPurpose(_operation_from(item.platform.operation, f"{field}.platform.operation"))
    if kind == "validation":
        validation = item.validation
        return ValidationPurpose(
            check_identifier(f"{field}.validation.key_id", validation.key_id),
            principal_from(validation.acting_for, caller, f"{field}.validation.acting_for"),
        )
    raise refused(f"{field}.purpose", "REQUIRED", "Say what the lease is for: agent, platform or validation.")


def _operation_from(value: int, field: str) -> Operation:
    operation = enum_from(Operation, value, field)
    if operation is Operation.KEY_VALIDATION:
        raise refused(field, "OPERATION_NOT_LEASED", "Ask for a lease of the purpose validation, naming the key.")
    return operation


def _outcome_from(
    outcome: lease_service_pb2.LeaseOutcome, holder: str, field: str
) -> ReportedOutcome | InvalidArgumentError:
    checks = FieldChecks()
    kind = checks.run(lambda: enum_from(Outcome, outcome.kind, f"{field}.kind"))
    checks.run(lambda: check_identifier(f"{field}.lease_id", outcome.lease_id))
    checks.run(lambda: check_identifier(f"{field}.key_id", outcome.key_id))
    retry_after = checks.run(lambda: _interval_from(outcome.retry_after, f"{field}.retry_after"))
    age = checks.run(lambda: _interval_from(outcome.age, f"{field}.age"))
    try:
        checks.conclude()
    except InvalidArgumentError as error:
        return error
    if kind is None or age is None:
        raise AssertionError("a check that returned nothing did not complain")
    return ReportedOutcome(
        holder=holder,
        lease_id=outcome.lease_id,
        provider_key_id=outcome.key_id,
        key_version=outcome.key_version,
        outcome=kind,
        retry_after=retry_after if outcome.HasField("retry_after") else None,
        age=age,
    )


def _interval_from(duration: Duration, field: str) -> timedelta:
    # Looked at before it is converted: a message may hold more than a timedelta can.
    if not 0 <= duration.seconds <= INTERVAL_MAX // timedelta(seconds=1) or not 0 <= duration.nanos < _NANOS:
        raise refused(field, "OUT_OF_RANGE", "Send 0 to 24 hours.")
    return timedelta(seconds=duration.seconds, microseconds=duration.nanos // 1_000)


def _result_to(outcome: LeaseOutcome, sealed: lease_pb2.SealedLeases) -> lease_pb2.LeaseResult:
    if isinstance(outcome, DomainError):
        return lease_pb2.LeaseResult(error=ERRORS.status(outcome))
    if isinstance(outcome, NoLease):
        return lease_pb2.LeaseResult(no_usable_key=_no_lease_to(outcome))
    return lease_pb2.LeaseResult(lease=_lease_to(outcome, sealed))


def _lease_to(granted: GrantedLease, sealed: lease_pb2.SealedLeases) -> lease_pb2.Lease:
    selection = granted.selection
    key = selection.key.key
    sealed_index = len(sealed.leases)
    sealed.leases.add(
        lease_id=granted.lease_id,
        key_id=key.provider_key_id,
        key_version=key.key_version,
        provider=key.provider,
        base_url=key.base_url,
        secret=granted.secret.reveal(),
    )
    granted.secret.wipe()
    return lease_pb2.Lease(
        lease_id=granted.lease_id,
        key_id=key.provider_key_id,
        key_version=key.key_version,
        provider=key.provider,
        scope=int(key.holder.scope),  # type: ignore[arg-type]  # the numbers are the contract's own
        account=account_to(selection.account),
        owner_id=selection.owner_id,
        owned_by=account_to(key.holder.owned_by),
        mapping=[route_to(route) for route in key.mapping],
        custody=int(key.custody),  # type: ignore[arg-type]  # as above
        life=duration_to(granted.life),
        authority_index=granted.authority_index,
        binding_index=selection.binding_index,
        sealed_index=sealed_index,
        state=int(key.state),  # type: ignore[arg-type]  # as above
        share=None if selection.share is None else share_to(selection.share),
    )


def _no_lease_to(outcome: NoLease) -> lease_pb2.NoUsableKey:
    reason = outcome.reason
    message = lease_pb2.NoUsableKey(
        cause=int(reason.cause),  # type: ignore[arg-type]  # the numbers are the contract's own
        account=account_to(reason.account),
        authority_index=outcome.authority_index,
        life=duration_to(outcome.life),
    )
    if reason.binding is not None:
        message.owner_id = reason.binding.binding.owner_id
        message.binding_index = reason.binding.seal.audit_index
    if reason.retry_after is not None:
        message.retry_after.CopyFrom(duration_to(reason.retry_after))
    return message


def _change_to(change: IndexedEntry) -> lease_service_pb2.AuthorityChange:
    entry = change.entry
    return lease_service_pb2.AuthorityChange(
        authority_index=change.audit_index,
        kind=_CHANGES.get(entry.kind, lease_service_pb2.AUTHORITY_CHANGE_KIND_UNSPECIFIED),
        key_id=entry.provider_key_id,
        agent_id=entry.agent_id,
        owner_id=_account_touched(entry, AccountKind.OWNER),
        organization_id=_account_touched(entry, AccountKind.ORGANIZATION),
        platform=entry.account is not None and entry.account.kind is AccountKind.PLATFORM,
        state=entry.key_state,  # type: ignore[arg-type]  # the numbers are the contract's own
        append_time=timestamp_to(entry.time),
    )


def _account_touched(entry: AuditEntry, kind: AccountKind) -> str:
    if entry.account is None or entry.account.kind is not kind:
        return ""
    # A key of one agent, a share, or a binding, touches that agent; any other key touches all agents of its account. A
    # halt of one agent also touches the test calls of the agent's keys, which are leased on behalf of the owner.
    if entry.agent_id and entry.kind is not EntryKind.HALTS_CHANGED:
        return ""
    return entry.account.party_id


def _draining_to(message: Draining) -> lease_service_pb2.WatchDraining:
    return lease_service_pb2.WatchDraining(ends_in=duration_to(message.ends_in))
