"""Admission's messages, checked and turned into commands, and outcomes turned into messages. Hot: no needless copy."""

from datetime import datetime
from typing import Final

import msgspec
from google.protobuf.duration_pb2 import Duration

from byok.metering.v1 import admission_service_pb2, reservation_pb2
from byok.type.v1 import account_pb2, operation_pb2
from metering.api.errors import TABLE
from metering.api.fields import (
    BODY_HASH_BYTES,
    BODY_HASH_KEPT,
    account_from,
    checked_request_id,
    invalid,
    is_uuid,
    ms_to,
    operation_from,
    time_to,
)
from metering.api.usage_documents import tokens_of, total_usage
from metering.domain.accounts import PLATFORM, AccountKey, check_identifier, partition_of
from metering.domain.enums import Payer, PlatformCause
from metering.domain.ledger import LedgerFacts, reservation_id
from metering.domain.money import AMOUNT_MAX, OUTPUT_TOKENS_MAX, check_amount, output_cost
from metering.domain.plans import PlanTerms
from metering.domain.reservations import (
    ATTEMPTS_MAX,
    Call,
    Estimate,
    ExtendCommand,
    Extended,
    ReleaseCommand,
    Released,
    ReserveCommand,
    SettleCommand,
)
from metering.domain.windows import to_ms
from metering.usecases.final_outcomes import FinalOutcome
from metering.usecases.reserve_batch import Grant, ReserveRequest, ReserveResult
from metering.usecases.settle_batch import Settlement, SettleResult
from servicekit.errors import DomainError

TTL_DEFAULT_MS: Final = 120_000
TTL_MAX_MS: Final = 15 * 60_000
CALL_INDEX_MAX: Final = 100_000
SEALED_ANSWER_BYTES_MAX: Final = 16 * 1024
TEXT_MAX: Final = 256
# What goes into the ledger must fit its columns: a record that Postgres cannot take would hold up its partition.
USAGE_SOURCE_MAX: Final = 3
LATENCY_SECONDS_MAX: Final = 86_400
RESERVE_AGE_MAX_MS: Final = 36 * 24 * 3_600_000
# Metering's own time may be ahead of this replica's, by as much as a clock was ever wrong.
RESERVE_AHEAD_MAX_MS: Final = 36 * 24 * 3_600_000

_PAYERS: Final = {payer.value: payer for payer in Payer}
_CAUSES: Final = {cause.value: cause for cause in PlatformCause}
_RULES: Final = {Payer.OWNER: "owner_key", Payer.ORGANIZATION: "organization_key", Payer.PLATFORM: "platform"}
_decode_terms: Final = msgspec.msgpack.Decoder(PlanTerms).decode


class Moment(msgspec.Struct, frozen=True):
    """The time of a batch, in both forms that checking needs."""

    now: datetime
    now_ms: int

    @classmethod
    def of(cls, now: datetime) -> "Moment":
        """Return the moment of a time."""
        return cls(now, to_ms(now))


def reserve_request(item: reservation_pb2.ReserveItem, moment: Moment) -> ReserveRequest:
    """Return what one item asks to hold.

    Raises:
        InvalidArgumentError: A field cannot be accepted.
    """
    call = _call(item.call, moment)
    account, facts, cause = _facts(item.attribution, call, item.body_hash)
    command = ReserveCommand(
        call=call,
        account=account,
        estimate=_estimate(item.estimate),
        facts=facts,
        ttl_ms=_ttl_ms(item.hold_ttl),
    )
    return ReserveRequest(command, cause)


def settle_command(item: reservation_pb2.SettleItem, moment: Moment) -> SettleCommand:
    """Return what one item settles.

    Raises:
        InvalidArgumentError: A field cannot be accepted.
    """
    call = _call(item.call, moment)
    account, facts, _ = _facts(item.attribution, call, item.body_hash)
    attempt = item.attempt or 1
    if not 1 <= attempt <= ATTEMPTS_MAX or item.reservation_id != reservation_id(call.request_id, attempt, account):
        raise invalid(
            "reservation_id", "NOT_OF_THIS_CALL", "must be the one granted for this request, attempt and account"
        )
    if len(item.sealed_answer) > SEALED_ANSWER_BYTES_MAX or (item.sealed_answer and not item.final):
        raise invalid(
            "sealed_answer", "NOT_KEPT", f"must be at most {SEALED_ANSWER_BYTES_MAX} bytes, and only with final"
        )
    estimate = _estimate(item.estimate)
    held_cost = estimate.fixed_cost_nano_usd + output_cost(
        item.granted_output_tokens, estimate.output_nano_usd_per_mtok
    )
    check_amount(held_cost, "granted_output_tokens")
    return SettleCommand(
        reservation_id=item.reservation_id,
        attempt=attempt,
        call=call,
        account=account,
        facts=_with_usage(facts, item, attempt),
        is_final=item.final,
        in_suspense=item.in_suspense,
        held_tokens=estimate.input_tokens + item.granted_output_tokens,
        held_cost_nano_usd=held_cost,
        reserve_ms=_reserve_ms(item, moment),
    )


def release_command(item: reservation_pb2.ReleaseItem, moment: Moment) -> ReleaseCommand:
    """Return what one item gives back.

    Raises:
        InvalidArgumentError: A field cannot be accepted.
    """
    call = _call(item.call, moment)
    account = account_from(item.account, "account")
    return ReleaseCommand(call=call, account=account, for_account=account)


def extend_command(item: reservation_pb2.ExtendItem, moment: Moment) -> ExtendCommand:
    """Return what one item keeps longer.

    Raises:
        InvalidArgumentError: A field cannot be accepted.
    """
    call = _call(item.call, moment)
    checked_request_id(item.reservation_id, moment.now, moment.now_ms, field="reservation_id")
    account = account_from(item.account, "account")
    return ExtendCommand(reservation_id=item.reservation_id, call=call, account=account, ttl_ms=_ttl_ms(item.hold_ttl))


def reserve_result(result: ReserveResult, account: AccountKey | None) -> reservation_pb2.ReserveResult:
    """Return the answer to one item of ReserveBatch."""
    if isinstance(result, Grant):
        hold = result.hold
        terms = _decode_terms(hold.plan) if hold.plan else PlanTerms("", 0, ())
        grant = reservation_pb2.Grant(
            reservation_id=result.reservation_id,
            attempt=hold.attempt,
            granted_output_tokens=hold.output_tokens,
            held_cost_nano_usd=hold.cost_nano_usd,
            expire_time=ms_to(hold.expire_ms),
            payer_rule=result.payer_rule,
            entitlements=terms.entitlements,
            priority=terms.priority,
            partition=partition_of(account) if account is not None else 0,
        )
        return reservation_pb2.ReserveResult(grant=grant)
    if isinstance(result, FinalOutcome):
        return reservation_pb2.ReserveResult(final_outcome=final_outcome(result))
    return reservation_pb2.ReserveResult(error=TABLE.status(result))


def settle_result(result: SettleResult) -> reservation_pb2.SettleResult:
    """Return the answer to one item of SettleBatch."""
    if isinstance(result, Settlement):
        position = reservation_pb2.OutboxPosition(
            partition=result.partition, generation=result.generation, sequence=result.sequence
        )
        settled = reservation_pb2.Settled(
            position=position, overrun_nano_usd=result.overrun_nano_usd, is_repeat=result.is_repeat
        )
        return reservation_pb2.SettleResult(settled=settled)
    return reservation_pb2.SettleResult(error=TABLE.status(result))


def release_result(result: Released | DomainError) -> reservation_pb2.ReleaseResult:
    """Return the answer to one item of ReleaseBatch."""
    if isinstance(result, Released):
        return reservation_pb2.ReleaseResult(released=reservation_pb2.Released(was_unknown=result.was_unknown))
    return reservation_pb2.ReleaseResult(error=TABLE.status(result))


def extend_result(result: Extended | DomainError) -> reservation_pb2.ExtendResult:
    """Return the answer to one item of ExtendBatch."""
    if isinstance(result, Extended):
        return reservation_pb2.ExtendResult(extended=reservation_pb2.Extended(expire_time=ms_to(result.expire_ms)))
    return reservation_pb2.ExtendResult(error=TABLE.status(result))


def final_outcome(outcome: FinalOutcome) -> reservation_pb2.FinalOutcome:
    """Return the message of an operation's outcome."""
    return reservation_pb2.FinalOutcome(
        usage=total_usage(outcome.entries),
        sealed_answer=outcome.sealed_answer,
        settle_time=time_to(outcome.settle_time),
        payer=account_pb2.Payer.ValueType(outcome.payer.value),
    )


def lookup_body_hash(request: admission_service_pb2.LookupRequest) -> bytes:
    """Return the body hash of a look-up as it is kept; none if none was sent."""
    if request.body_hash and len(request.body_hash) != BODY_HASH_BYTES:
        raise invalid("body_hash", "NOT_A_SHA256", f"must be {BODY_HASH_BYTES} bytes")
    return request.body_hash[:BODY_HASH_KEPT]


def _call(message: reservation_pb2.CallIdentity, moment: Moment) -> Call:
    request_id = checked_request_id(message.request_id, moment.now, moment.now_ms, field="call.request_id")
    if not 0 <= message.call_index <= CALL_INDEX_MAX:
        raise invalid("call.call_index", "OUT_OF_RANGE", f"must be from 0 to {CALL_INDEX_MAX}")
    if not is_uuid(message.holder):
        raise invalid("call.holder", "HOLDER_MALFORMED", "must be the UUIDv7 of one Router process")
    return Call(request_id, message.call_index, message.holder)


def _facts(
    message: reservation_pb2.Attribution, call: Call, body_hash: bytes
) -> tuple[AccountKey, LedgerFacts, PlatformCause | None]:
    account = account_from(message.account, "attribution.account")
    operation = operation_from(message.operation, "attribution.operation")
    payer = _PAYERS.get(message.payer)
    if payer is None:
        raise invalid("attribution.payer", "PAYER_MISSING", "must be OWNER, ORGANIZATION or PLATFORM")
    cause = _CAUSES.get(message.platform_cause)
    if payer is Payer.PLATFORM and cause is None:
        raise invalid("attribution.platform_cause", "CAUSE_MISSING", "must say why the platform is asked to pay")
    if len(body_hash) != BODY_HASH_BYTES:
        raise invalid("body_hash", "NOT_A_SHA256", f"must be {BODY_HASH_BYTES} bytes")
    _check_parties(message, account)
    subject = message.subject
    facts = LedgerFacts(
        request_id=call.request_id,
        call_index=call.call_index,
        holder=call.holder,
        attempt=1,
        leg=0,
        agent_id=message.agent_id,
        owner_id=message.owner_id,
        operation=operation.value,
        subject_type=subject.type,
        subject_id=subject.id,
        payer=payer.value,
        payer_rule=_RULES[payer],
        key_id=message.key_id,
        lease_id=message.lease_id,
        provider=message.provider,
        model=message.model,
        body_hash=body_hash[:BODY_HASH_KEPT],
        platform_purpose=message.platform_purpose,
    )
    return account, facts, cause


def _check_parties(message: reservation_pb2.Attribution, account: AccountKey) -> None:
    if message.agent_id:
        check_identifier(message.agent_id, "attribution.agent_id")
        check_identifier(message.owner_id, "attribution.owner_id")
    elif message.operation == operation_pb2.OPERATION_KEY_VALIDATION:
        # A key of all of an owner's agents is tested for its owner; no agent asked for it.
        if account != PLATFORM:
            check_identifier(message.owner_id, "attribution.owner_id")
    elif account != PLATFORM:
        raise invalid("attribution.agent_id", "AGENT_MISSING", "may be empty for the platform's own work only")
    texts = (
        message.subject.type,
        message.subject.id,
        message.key_id,
        message.lease_id,
        message.provider,
        message.model,
        message.platform_purpose,
    )
    if max(map(len, texts)) > TEXT_MAX or "\0" in "".join(texts):
        raise invalid("attribution", "TEXT_MALFORMED", f"texts must be at most {TEXT_MAX} characters, without NUL")


def _estimate(message: reservation_pb2.Estimate) -> Estimate:
    least, most, price = message.output_tokens_min, message.output_tokens_max, message.output_nano_usd_per_mtok
    check_amount(message.input_tokens, "estimate.input_tokens", maximum=OUTPUT_TOKENS_MAX)
    check_amount(price, "estimate.output_nano_usd_per_mtok")
    check_amount(message.fixed_cost_nano_usd, "estimate.fixed_cost_nano_usd")
    check_amount(most, "estimate.output_tokens_max", maximum=OUTPUT_TOKENS_MAX)
    check_amount(least, "estimate.output_tokens_min", maximum=most)
    if message.fixed_cost_nano_usd + output_cost(most, price) > AMOUNT_MAX:
        raise invalid("estimate", "AMOUNT_OUT_OF_RANGE", f"the dearest outcome must cost at most {AMOUNT_MAX} nano-USD")
    return Estimate(message.input_tokens, message.fixed_cost_nano_usd, price, least, most)


def _reserve_ms(item: reservation_pb2.SettleItem, moment: Moment) -> int:
    """Return when the call was reserved; 0 if it is not told, which means now."""
    if not item.HasField("reserve_time"):
        return 0
    reserve_ms = item.reserve_time.seconds * 1_000 + item.reserve_time.nanos // 1_000_000
    if not -RESERVE_AGE_MAX_MS <= reserve_ms - moment.now_ms <= RESERVE_AHEAD_MAX_MS:
        raise invalid("reserve_time", "OUT_OF_RANGE", "must be the time of the grant, at most 36 days ago")
    return reserve_ms


def _with_usage(facts: LedgerFacts, item: reservation_pb2.SettleItem, attempt: int) -> LedgerFacts:
    usage = item.usage
    if not item.in_suspense and not item.HasField("usage"):
        raise invalid("usage", "USAGE_MISSING", "is required unless in_suspense")
    check_amount(usage.cost_nano_usd, "usage.cost_nano_usd")
    check_amount(usage.source, "usage.source", maximum=USAGE_SOURCE_MAX)
    check_amount(item.provider_latency.seconds, "provider_latency", maximum=LATENCY_SECONDS_MAX)
    if len(usage.price_version) > TEXT_MAX or "\0" in usage.price_version:
        raise invalid("usage.price_version", "TEXT_MALFORMED", f"must be at most {TEXT_MAX} characters, without NUL")
    read, written = tokens_of(usage)
    return msgspec.structs.replace(
        facts,
        attempt=attempt,
        input_tokens=read,
        output_tokens=written,
        cost_nano_usd=usage.cost_nano_usd,
        usage_document=usage.SerializeToString(deterministic=True),
        usage_source=usage.source,
        price_version=usage.price_version,
        latency_ms=item.provider_latency.seconds * 1_000 + item.provider_latency.nanos // 1_000_000,
        is_final=item.final,
        sealed_answer=item.sealed_answer,
    )


def _ttl_ms(message: Duration) -> int:
    ttl_ms = message.seconds * 1_000 + message.nanos // 1_000_000
    if ttl_ms == 0:
        return TTL_DEFAULT_MS
    if not 0 < ttl_ms <= TTL_MAX_MS:
        raise invalid("hold_ttl", "OUT_OF_RANGE", f"must be at most {TTL_MAX_MS // 60_000} minutes")
    return ttl_ms
