"""Reservations, settlements and Metering's refusals, between the domain and protobuf. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import QuotaFailure

from byok.metering.v1 import reservation_pb2
from router.domain.leases import PlatformCause
from router.domain.refusals import (
    AgentNotFoundError,
    CallClosedError,
    CapReachedError,
    CustodyLogRolledBackError,
    InProgressError,
    KeyRequiredError,
    RequestIdReusedError,
    RouterError,
    RouterOverloadedError,
    SuiteUnavailableError,
)
from router.domain.reservations import FinalOutcome, Grant
from router.messages import OPERATIONS, PAYERS, account_message, payer_of, subject_message, usage_message, usage_of
from servicekit.errors import QuotaViolation

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.domain.reservations import Attribution, Charge, Release, Reserve
    from servicekit.wire import RemoteError

_CAUSES: Final = {each: reservation_pb2.PlatformCause.Value(f"PLATFORM_CAUSE_{each.name}") for each in PlatformCause}
# What Metering says of a limit, under the names that our own contract documents.
_CAP_FACTS: Final = {
    "limitId": "limit_id",
    "resetTime": "reset_time",
    "remaining": "remaining",
    "unit": "unit",
    "limit": "limit",
    "scope": "scope",
    "window": "window",
}
# Refusals that say everything by their reason.
_PLAIN_REFUSALS: Final[dict[str, Callable[[], RouterError]]] = {
    "REQUEST_ID_REUSED": RequestIdReusedError,
    "RESERVATION_CLOSED": CallClosedError,
    "CUSTODY_LOG_ROLLED_BACK": CustodyLogRolledBackError,
}
_RETRY_AFTER: Final = timedelta(seconds=1)
# Both directions by plain arithmetic: the conversions of protobuf's own types cost twelve microseconds a call.
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def reserve_item(reserve: Reserve, *, holder: str) -> reservation_pb2.ReserveItem:
    """Return a reservation asked for as a message."""
    estimate = reserve.estimate
    return reservation_pb2.ReserveItem(
        call=reservation_pb2.CallIdentity(request_id=reserve.request_id, call_index=reserve.call_index, holder=holder),
        attribution=_attribution(reserve.attribution),
        estimate=reservation_pb2.Estimate(
            input_tokens=estimate.input_tokens,
            fixed_cost_nano_usd=estimate.fixed_cost_nano_usd,
            output_nano_usd_per_mtok=estimate.output_nano_usd_per_mtok,
            output_tokens_min=estimate.output_tokens_min,
            output_tokens_max=estimate.output_tokens_max,
        ),
        body_hash=reserve.body_hash,
        hold_ttl=_duration(reserve.hold_ttl),
    )


def settle_item(charge: Charge, asked: reservation_pb2.ReserveItem) -> reservation_pb2.SettleItem:
    """Return a settlement as a message that can be applied also after its hold was lost.

    Args:
        charge: The truth about the call.
        asked: What was sent to take its hold.
    """
    grant = charge.grant
    item = reservation_pb2.SettleItem(
        reservation_id=grant.reservation_id,
        call=asked.call,
        attribution=asked.attribution,
        estimate=asked.estimate,
        body_hash=asked.body_hash,
        final=charge.is_final,
        in_suspense=charge.usage is None,
        sealed_answer=charge.sealed_answer,
        granted_output_tokens=grant.granted_output_tokens,
        reserve_time=_timestamp(grant),
        provider_latency=_duration(charge.provider_latency),
        attempt=grant.attempt,
    )
    if charge.usage is not None:
        item.usage.CopyFrom(usage_message(charge.usage))
    return item


def release_item(release: Release, *, holder: str) -> reservation_pb2.ReleaseItem:
    """Return a hold given back as a message."""
    item = unknown_release_item(release.reserve, holder=holder)
    item.reservation_id = release.grant.reservation_id
    item.final = release.is_final
    return item


def unknown_release_item(reserve: Reserve, *, holder: str) -> reservation_pb2.ReleaseItem:
    """Return the release of a reservation whose answer never came: it may stand, or may yet be granted."""
    return reservation_pb2.ReleaseItem(
        call=reservation_pb2.CallIdentity(request_id=reserve.request_id, call_index=reserve.call_index, holder=holder),
        account=account_message(reserve.attribution.account),
    )


def grant_of(message: reservation_pb2.Grant, reserve: Reserve) -> Grant:
    """Return the hold that was granted."""
    stamp = message.expire_time
    expire_time = _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1_000)
    return Grant(
        reservation_id=message.reservation_id,
        attempt=message.attempt,
        granted_output_tokens=message.granted_output_tokens,
        # Metering's own clock: the hold began as long before its end as was asked for.
        reserve_time=expire_time - reserve.hold_ttl,
        payer_rule=message.payer_rule,
        entitlements=tuple(message.entitlements),
        priority=message.priority,
    )


def final_outcome_of(message: reservation_pb2.FinalOutcome) -> FinalOutcome:
    """Return the outcome of a closed operation."""
    return FinalOutcome(
        usage=usage_of(message.usage) if message.HasField("usage") else None,
        sealed_answer=message.sealed_answer,
        payer=payer_of(message.payer),
    )


def final_outcome_of_settlement(message: reservation_pb2.SettleItem, body_hash: bytes) -> FinalOutcome:
    """Return the outcome that a settlement on its way will give an operation.

    Raises:
        RequestIdReusedError: It is of another body.
    """
    if message.body_hash != body_hash:
        raise RequestIdReusedError
    return FinalOutcome(
        usage=usage_of(message.usage) if message.HasField("usage") else None,
        sealed_answer=message.sealed_answer,
        payer=payer_of(message.attribution.payer),
    )


def refusal_by_metering(error: RemoteError, *, agent_id: str, cause: PlatformCause | None) -> RouterError:
    """Return what Metering's refusal means for our caller."""
    plain = _PLAIN_REFUSALS.get(error.reason)
    if plain is not None:
        return plain()
    match error.reason:
        case "CAP_REACHED":
            return _cap_reached(error)
        case "PLATFORM_NOT_PAYING":
            return KeyRequiredError(cause=cause or PlatformCause.NO_KEY)
        case "IN_PROGRESS":
            return InProgressError(retry_after=error.retry_after or _RETRY_AFTER)
        case "AGENT_NOT_FOUND" | "ACCOUNT_NOT_FOUND":
            return AgentNotFoundError(agent_id=agent_id)
        case "OVERLOADED":
            return RouterOverloadedError(retry_after=error.retry_after or _RETRY_AFTER)
        case _:
            return SuiteUnavailableError(service="metering", retry_after=error.retry_after)


def _cap_reached(error: RemoteError) -> CapReachedError:
    facts = {ours: error.metadata[theirs] for theirs, ours in _CAP_FACTS.items() if theirs in error.metadata}
    details = error.detail(QuotaFailure)
    quota = tuple(
        QuotaViolation(
            subject=each.subject,
            description=each.description,
            quota_metric=getattr(each, "quota_metric", ""),
            quota_id=getattr(each, "quota_id", ""),
            quota_value=getattr(each, "quota_value", 0),
        )
        for each in (details.violations if details else ())
    )
    return CapReachedError(error.message, quota=quota, **facts)


def _attribution(attribution: Attribution) -> reservation_pb2.Attribution:
    message = reservation_pb2.Attribution(
        account=account_message(attribution.account),
        agent_id=attribution.agent_id,
        owner_id=attribution.owner_id,
        operation=OPERATIONS[attribution.operation],
        payer=PAYERS[attribution.payer],
        key_id=attribution.key_id,
        lease_id=attribution.lease_id,
        provider=attribution.provider,
        model=attribution.model,
        binding_index=attribution.binding_index,
        platform_purpose=attribution.platform_purpose,
    )
    if attribution.subject is not None:
        message.subject.CopyFrom(subject_message(attribution.subject))
    if attribution.platform_cause is not None:
        message.platform_cause = _CAUSES[attribution.platform_cause]
    return message


def _duration(value: timedelta) -> Duration:
    return Duration(seconds=value.days * 86_400 + value.seconds, nanos=value.microseconds * 1_000)


def _timestamp(grant: Grant) -> Timestamp:
    microseconds = (grant.reserve_time - _EPOCH) // _MICROSECOND
    return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1_000)
