"""The one table of how failures travel, and the `OperationFailure` that goes with every one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from byok.router.v1 import operation_result_pb2 as pb
from router.domain import errors as provider_errors
from router.domain import refusals
from router.domain.receipts import FailureReport, Settlement
from router.messages import PAYERS, usage_message
from servicekit.errors import DeadlineExceededError, DomainError, OverloadedError, UnavailableError
from servicekit.wire import ErrorTable, WireError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

    from router.domain.receipts import AttemptFailure

DOMAIN: Final = "byok.router"

_KEY: Final = ("provider_key_id",)
_KEY_AND_PROVIDER: Final = ("provider_key_id", "provider")
_PROVIDER: Final = ("provider",)
_MODEL: Final = ("provider", "model")
_PRECONDITION: Final = grpc.StatusCode.FAILED_PRECONDITION
_EXHAUSTED: Final = grpc.StatusCode.RESOURCE_EXHAUSTED
_UNAVAILABLE: Final = grpc.StatusCode.UNAVAILABLE
_NOT_FOUND: Final = grpc.StatusCode.NOT_FOUND

_ROWS: Final[dict[type[DomainError], WireError]] = {
    refusals.RequestIdReusedError: WireError(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
    refusals.InProgressError: WireError(grpc.StatusCode.ABORTED, "IN_PROGRESS"),
    refusals.AgentNotFoundError: WireError(_NOT_FOUND, "AGENT_NOT_FOUND", ("agent_id",)),
    refusals.ProviderKeyNotFoundError: WireError(_NOT_FOUND, "PROVIDER_KEY_NOT_FOUND", _KEY),
    refusals.ProviderKeyRevokedError: WireError(_PRECONDITION, "PROVIDER_KEY_REVOKED", _KEY),
    refusals.HaltedError: WireError(_PRECONDITION, "HALTED", ("halt_scope",)),
    refusals.KeyRequiredError: WireError(_PRECONDITION, "BYOK_KEY_REQUIRED", ("cause",)),
    refusals.ProviderKeyRejectedError: WireError(_PRECONDITION, "PROVIDER_KEY_REJECTED", _KEY_AND_PROVIDER),
    refusals.ProviderNoCreditError: WireError(_PRECONDITION, "PROVIDER_NO_CREDIT", _KEY_AND_PROVIDER),
    refusals.CapReachedError: WireError(
        _EXHAUSTED,
        "CAP_REACHED",
        ("limit_id", "reset_time", "remaining", "unit", "limit", "scope", "window"),
    ),
    refusals.ProviderRateLimitedError: WireError(_EXHAUSTED, "PROVIDER_RATE_LIMITED", _PROVIDER),
    refusals.RouterOverloadedError: WireError(_EXHAUSTED, "OVERLOADED"),
    refusals.ContentHeldError: WireError(_PRECONDITION, "CONTENT_REFUSED", _PROVIDER),
    refusals.ProviderRequestRefusedError: WireError(_PRECONDITION, "PROVIDER_REQUEST_REFUSED", _MODEL),
    refusals.ModelUnavailableError: WireError(_PRECONDITION, "MODEL_UNAVAILABLE", _MODEL),
    refusals.ModelNotCapableError: WireError(_PRECONDITION, "MODEL_NOT_CAPABLE", _MODEL),
    refusals.EmbeddingSpaceUnavailableError: WireError(_PRECONDITION, "EMBEDDING_SPACE_UNAVAILABLE"),
    refusals.AnswerNotKeptError: WireError(_PRECONDITION, "ANSWER_NOT_KEPT"),
    refusals.AnswerMalformedError: WireError(_UNAVAILABLE, "ANSWER_MALFORMED", _MODEL),
    refusals.ProvidersExhaustedError: WireError(_UNAVAILABLE, "PROVIDERS_EXHAUSTED", _PROVIDER),
    refusals.SuiteUnavailableError: WireError(_UNAVAILABLE, "SUITE_UNAVAILABLE", ("service",)),
    # Taken away between the reservation and the first byte: to the caller, KeyVault could not be asked in time.
    refusals.LeaseEndedError: WireError(_UNAVAILABLE, "SUITE_UNAVAILABLE"),
    refusals.CallClosedError: WireError(_UNAVAILABLE, "SUITE_UNAVAILABLE"),
    refusals.PriceUnknownError: WireError(_PRECONDITION, "PRICE_UNKNOWN", _MODEL),
    refusals.EgressForbiddenError: WireError(_PRECONDITION, "EGRESS_REFUSED", ("host",)),
    refusals.CustodyLogRolledBackError: WireError(_PRECONDITION, "CUSTODY_LOG_ROLLED_BACK"),
    refusals.KeyCorruptError: WireError(grpc.StatusCode.DATA_LOSS, "KEY_CORRUPT", _KEY),
    # What servicekit raises when this process itself has no room or is stopping.
    UnavailableError: WireError(_UNAVAILABLE, "SUITE_UNAVAILABLE"),
}

# What each way of failing is called in the list of attempts: the reason that it would have had alone.
_ATTEMPT_REASONS: Final = {
    provider_errors.KeyRejectedError.__name__: "PROVIDER_KEY_REJECTED",
    provider_errors.NoCreditError.__name__: "PROVIDER_NO_CREDIT",
    provider_errors.ThrottledError.__name__: "PROVIDER_RATE_LIMITED",
    provider_errors.DailyQuotaError.__name__: "PROVIDER_RATE_LIMITED",
    provider_errors.ContentRefusedError.__name__: "CONTENT_REFUSED",
    provider_errors.BadRequestError.__name__: "PROVIDER_REQUEST_REFUSED",
    provider_errors.GenerationRejectedError.__name__: "ANSWER_MALFORMED",
    provider_errors.ContextExceededError.__name__: "PROVIDER_REQUEST_REFUSED",
    provider_errors.ModelGoneError.__name__: "MODEL_UNAVAILABLE",
    provider_errors.PermissionRefusedError.__name__: "MODEL_UNAVAILABLE",
    provider_errors.MalformedAnswerError.__name__: "ANSWER_MALFORMED",
    provider_errors.EmbeddingsUnsupportedError.__name__: "MODEL_NOT_CAPABLE",
}
SETTLEMENTS: Final = {each: pb.Settlement.Value(f"SETTLEMENT_{each.name}") for each in Settlement}
_NOTHING_BEGAN: Final = FailureReport(retryable=False, settlement=Settlement.NOT_RESERVED)
_RETRYABLE: Final = (OverloadedError, UnavailableError, DeadlineExceededError)


def failure_message(error: DomainError) -> pb.OperationFailure:
    """Return what a caller must know of any failure: hold the content, and what had happened by then."""
    report = getattr(error, "report", None) or _NOTHING_BEGAN
    failure = pb.OperationFailure(
        disposition=pb.DISPOSITION_HOLD,
        retryable=report.retryable or isinstance(error, _RETRYABLE),
        settlement=SETTLEMENTS[report.settlement],
        attempts=[_attempt_message(attempt) for attempt in report.attempts],
    )
    if report.retry_time is not None:
        retry_time = Timestamp()
        retry_time.FromDatetime(report.retry_time)
        failure.retry_time.CopyFrom(retry_time)
    if report.payer is not None:
        failure.payer = PAYERS[report.payer]
    if report.usage is not None:
        failure.usage.CopyFrom(usage_message(report.usage))
    return failure


def _attempt_message(attempt: AttemptFailure) -> pb.AttemptFailure:
    return pb.AttemptFailure(
        provider=attempt.provider,
        model=attempt.model,
        key_id=attempt.key_id,
        reason=_ATTEMPT_REASONS.get(attempt.failure, "PROVIDERS_EXHAUSTED"),
        http_status=attempt.http_status,
        may_be_billed=attempt.may_be_billed,
    )


def _details_of(error: DomainError) -> Sequence[Message]:
    if type(error) is DomainError:
        # It stands for everything unforeseen: what had been charged by then is not known here.
        return (pb.OperationFailure(disposition=pb.DISPOSITION_HOLD),)
    if isinstance(error, DeadlineExceededError) and getattr(error, "report", None) is None:
        # The call was cut off in the middle; its hold stands until it is known what the provider has charged for.
        return (pb.OperationFailure(disposition=pb.DISPOSITION_HOLD, retryable=True),)
    return (failure_message(error),)


TABLE: Final = ErrorTable(DOMAIN, _ROWS, details_of=_details_of)
