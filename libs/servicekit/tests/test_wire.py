"""The error table, its check, and reading what peers answer."""

from datetime import timedelta

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import DebugInfo, ErrorInfo
from google.rpc.status_pb2 import Status

from servicekit.errors import DomainError, InvalidArgumentError, UnavailableError
from servicekit.wire import (
    STATUS_DETAILS_KEY,
    ErrorTable,
    WireError,
    error_from_rpc,
    lower_camel,
    remote_error,
    table_faults,
)


class LostError(DomainError):
    """Something is lost."""


class LostForGoodError(LostError):
    """Something is lost and will not be found."""


_ROWS: dict[type[DomainError], WireError] = {
    LostError: WireError(grpc.StatusCode.NOT_FOUND, "LOST", ("thing_id",)),
    UnavailableError: WireError(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),
}
_TABLE = ErrorTable("byok.test", _ROWS)
_REASONS = [
    "ERROR_REASON_UNSPECIFIED",
    "ERROR_REASON_LOST",
    "ERROR_REASON_STORE_UNAVAILABLE",
    "ERROR_REASON_INVALID_ARGUMENT",
    "ERROR_REASON_CALLER_NOT_ALLOWED",
    "ERROR_REASON_DEADLINE_EXCEEDED",
    "ERROR_REASON_OVERLOADED",
    "ERROR_REASON_INTERNAL",
]


def test_a_subclass_without_a_row_travels_as_its_ancestor() -> None:
    """The nearest row in the line of ancestors is the one used."""
    assert remote_error(_TABLE.status(LostForGoodError("Gone."))).reason == "LOST"


def test_a_service_replaces_a_common_row() -> None:
    """A service says with its own reason what is common to all."""
    assert _TABLE.reason(UnavailableError("x")) == "STORE_UNAVAILABLE"
    assert _TABLE.code(InvalidArgumentError("x", violations=[])) is grpc.StatusCode.INVALID_ARGUMENT


def test_an_exception_that_is_no_domain_error_is_opaque() -> None:
    """Its text never travels."""
    status = _TABLE.status(ValueError("secret text"), request_id="r1")
    assert "secret text" not in str(status)
    answer = remote_error(status)
    assert (answer.code, answer.reason, answer.metadata) == (grpc.StatusCode.INTERNAL, "INTERNAL", {"requestId": "r1"})


def test_a_domain_error_without_any_row_is_opaque() -> None:
    """A forgotten row shows as INTERNAL, not as a made-up reason."""

    class ForgottenError(DomainError):
        """Nobody gave it a row."""

    assert remote_error(_TABLE.status(ForgottenError("text"))).reason == "INTERNAL"


def test_a_service_adds_details_of_its_own() -> None:
    """What only the service's messages can say travels beside the one ErrorInfo."""

    def details_of(error: DomainError) -> list[Message]:
        return [DebugInfo(detail="held")] if isinstance(error, LostError) else []

    answer = remote_error(ErrorTable("byok.test", _ROWS, details_of=details_of).status(LostError("x", thing_id=7)))
    detail = answer.detail(DebugInfo)
    assert detail is not None
    assert detail.detail == "held"
    assert answer.metadata == {"thingId": "7"}
    assert sum(each.Is(ErrorInfo.DESCRIPTOR) for each in answer.details) == 1


def test_an_opaque_error_has_the_service_s_details_too() -> None:
    """A caller that looks for the detail of every failure finds it also where nothing was foreseen."""
    table = ErrorTable("byok.test", _ROWS, details_of=lambda _error: [DebugInfo(detail="held")])
    answer = remote_error(table.status(ValueError("secret text")))
    detail = answer.detail(DebugInfo)
    assert detail is not None
    assert detail.detail == "held"
    assert "secret text" not in str(answer.details)


def test_a_retry_time_travels_and_is_never_negative() -> None:
    """A time that has passed already means now."""
    error = LostError("x")
    error.retry_after = timedelta(seconds=-5)
    assert remote_error(_TABLE.status(error)).retry_after == timedelta(0)


def test_a_complete_table_has_no_faults() -> None:
    """Table, errors and documented reasons agree."""
    assert table_faults(_TABLE, errors=[LostError], reasons=_REASONS) == []


@pytest.mark.parametrize(
    ("errors", "reasons", "fault"),
    [
        pytest.param([LostError, LostForGoodError], _REASONS, "LostForGoodError has no row", id="no row"),
        pytest.param([], _REASONS, "LostError has a row and is no error of the domain", id="a row too many"),
        pytest.param([LostError], _REASONS[:-1], "INTERNAL is sent and not documented", id="undocumented"),
        pytest.param(
            [LostError], [*_REASONS, "ERROR_REASON_EXTRA"], "EXTRA is documented and never sent", id="never sent"
        ),
    ],
)
def test_the_check_finds_each_kind_of_difference(
    errors: list[type[DomainError]], reasons: list[str], fault: str
) -> None:
    """No more and no less, in any of the three."""
    assert table_faults(_TABLE, errors=errors, reasons=reasons) == [fault]


def _rpc_error(code: grpc.StatusCode, trailers: list[tuple[str, bytes]]) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata(*trailers)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details="text")


@pytest.mark.parametrize(
    "trailers",
    [
        pytest.param([], id="none"),
        pytest.param([(STATUS_DETAILS_KEY, b"\xff\xff")], id="malformed"),
        pytest.param([(STATUS_DETAILS_KEY, Status(code=5, message="other").SerializeToString())], id="of another code"),
    ],
)
def test_an_answer_without_usable_details_is_untyped(trailers: list[tuple[str, bytes]]) -> None:
    """A broken channel, or a proxy in between, yields a code and nothing made up."""
    error = error_from_rpc(_rpc_error(grpc.StatusCode.UNAVAILABLE, trailers))
    assert (error.code, error.reason, error.message) == (grpc.StatusCode.UNAVAILABLE, "", "text")
    assert error.retry_after is None


def test_an_unknown_code_number_is_unknown() -> None:
    """A batch item with a code that does not exist is still an error."""
    assert remote_error(Status(code=99)).code is grpc.StatusCode.UNKNOWN


def test_names_become_lower_camel() -> None:
    """Metadata keys are as google.rpc asks."""
    names = ("provider_key_id", "provider", "a_1b")
    assert [lower_camel(name) for name in names] == ["providerKeyId", "provider", "a1b"]


def test_a_call_that_a_stopping_server_cut_off_can_be_made_again() -> None:
    """Calls that were received and not begun end as CANCELLED; callers retry UNAVAILABLE alone."""
    cut_off = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata(), "Cancelled")
    assert error_from_rpc(cut_off).code is grpc.StatusCode.UNAVAILABLE
