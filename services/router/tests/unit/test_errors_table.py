"""The one table of failures agrees with the errors that exist and with the reasons that the contract documents."""

import inspect

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, QuotaFailure, RetryInfo

from byok.router.v1.error_reason_pb2 import ErrorReason
from byok.router.v1.operation_result_pb2 import DISPOSITION_HOLD, SETTLEMENT_NOT_RESERVED, OperationFailure
from router.api.errors import TABLE
from router.domain import errors, refusals
from router.domain.leases import PlatformCause
from servicekit.errors import DomainError, InvalidArgumentError, OverloadedError, QuotaViolation, UnavailableError
from servicekit.wire import remote_error, table_faults

REFUSALS = [
    error
    for _, error in inspect.getmembers(refusals, inspect.isclass)
    if issubclass(error, refusals.RouterError) and error is not refusals.RouterError
]


def test_the_table_is_the_errors_is_the_proto() -> None:
    """No error without a row, no row without an error, no reason undocumented or never sent."""
    assert table_faults(TABLE, errors=[*REFUSALS, UnavailableError], reasons=list(ErrorReason.keys())) == []


def test_every_failure_says_hold() -> None:
    """Also one that failed before anything had begun, and one that servicekit raised."""
    for error in (
        refusals.KeyRequiredError(cause=PlatformCause.NO_KEY),
        InvalidArgumentError("no", violations=[]),
        OverloadedError("full"),
    ):
        failure = remote_error(TABLE.status(error)).detail(OperationFailure)
        assert failure is not None
        assert failure.disposition == DISPOSITION_HOLD
        assert failure.settlement == SETTLEMENT_NOT_RESERVED


def test_a_cap_is_no_rate_limit() -> None:
    """A cap carries QuotaFailure and never RetryInfo; throttling the other way round."""
    cap = refusals.CapReachedError(
        "reached", quota=(QuotaViolation(subject="owner-1", description="daily cost"),), limit_id="l", reset_time="t"
    )
    told = remote_error(TABLE.status(cap))
    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CAP_REACHED")
    assert told.metadata == {"limitId": "l", "resetTime": "t"}
    assert told.detail(QuotaFailure) is not None
    assert told.detail(RetryInfo) is None
    throttled = refusals.refusal_of(errors.ThrottledError(provider="openai", rule="r"), key_id="k", model="m")
    told = remote_error(TABLE.status(throttled))
    assert told.reason == "PROVIDER_RATE_LIMITED"
    assert told.retry_after is not None


@pytest.mark.parametrize(
    "failure",
    [
        error
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.ProviderError) and error is not errors.ProviderError
    ],
)
def test_every_way_a_provider_fails_reads_as_a_documented_reason(failure: type[errors.ProviderError]) -> None:
    """No vendor's failure reaches a caller as INTERNAL, and exactly one ErrorInfo goes with it."""
    refusal: DomainError = refusals.refusal_of(failure(provider="openai", rule="r"), key_id="k", model="m")
    status = TABLE.status(refusal)
    assert remote_error(status).reason != "INTERNAL"
    assert sum(detail.Is(ErrorInfo.DESCRIPTOR) for detail in status.details) == 1
