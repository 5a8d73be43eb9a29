"""Translates errors between the domain and the wire, in both directions.

The server side is `ErrorTable`: one table per service gives every domain error its code and reason. The client side is
`error_from_rpc` and `remote_error`: they turn what a peer sent into one `RemoteError` that an adapter can look at.
gRPC's and `google.rpc`'s gaps in typing are fenced in here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as PackedMessage
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

from servicekit.errors import (
    CallerNotAllowedError,
    DeadlineExceededError,
    DomainError,
    FieldViolation,
    InvalidArgumentError,
    OverloadedError,
    UnavailableError,
)

STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"

Detail = TypeVar("Detail", bound=Message)


@dataclass(frozen=True, slots=True)
class WireError:
    """How an error travels: its code, its documented reason, and which of its facts go with it."""

    code: grpc.StatusCode
    reason: str
    metadata: tuple[str, ...] = ()


COMMON_ROWS: Final[Mapping[type[DomainError], WireError]] = {
    InvalidArgumentError: WireError(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    CallerNotAllowedError: WireError(grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED"),
    DeadlineExceededError: WireError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    OverloadedError: WireError(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    UnavailableError: WireError(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
}
INTERNAL: Final = WireError(grpc.StatusCode.INTERNAL, "INTERNAL")

# More details of an error, such as Router's OperationFailure, that only the service's own messages can carry.
# Of an error that is no domain error it is asked too, with a bare `DomainError` for everything unforeseen.
DetailsOf = Callable[[DomainError], Sequence[Message]]

# A status travels in the trailing metadata, in base 64, beside the message; gRPC begins to refuse those at 8 KiB.
_STATUS_BYTES_MAX: Final = 4_000
_TEXT_MAX: Final = 400

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class ErrorTable:
    """The one place where a service's domain errors get their codes and reasons.

    The rows of `COMMON_ROWS` are in every table; a service may replace one. A subclass without a row of its own uses
    its nearest ancestor's.
    """

    def __init__(
        self,
        domain: str,
        rows: Mapping[type[DomainError], WireError],
        *,
        details_of: DetailsOf | None = None,
    ) -> None:
        """Make the table of `domain`, for example `byok.keyvault`."""
        self.domain = domain
        self.rows: Mapping[type[DomainError], WireError] = {**COMMON_ROWS, **rows}
        self._details_of = details_of
        self._found: dict[type[Exception], WireError | None] = {}

    @property
    def reasons(self) -> frozenset[str]:
        """Every reason that this table can send."""
        return frozenset(row.reason for row in self.rows.values()) | {INTERNAL.reason}

    def code(self, error: Exception) -> grpc.StatusCode:
        """Return the code that `error` travels with."""
        return (self._find(type(error)) or INTERNAL).code

    def reason(self, error: Exception) -> str:
        """Return the reason that `error` travels with."""
        return (self._find(type(error)) or INTERNAL).reason

    def status(self, error: Exception, *, request_id: str = "") -> Status:
        """Return what goes on the wire for `error`; of one that has no row, nothing but the request id."""
        row = self._find(type(error))
        if row is None or not isinstance(error, DomainError):
            return self._opaque(request_id)
        status = Status(code=row.code.value[0], message=_shortened(error.message))
        facts = {lower_camel(name): str(error.facts[name]) for name in row.metadata if name in error.facts}
        _pack(status, ErrorInfo(reason=row.reason, domain=self.domain, metadata=facts))
        if error.retry_after is not None:
            _pack(status, _retry_info(error.retry_after))
        if error.quota:
            _pack(status, _quota_failure(error))
        for detail in self._details_of(error) if self._details_of else ():
            _pack(status, detail)
        if error.violations:
            # Last, because it takes the room that is left.
            _pack(status, _bad_request(error.violations, _STATUS_BYTES_MAX - status.ByteSize()))
        return status

    def _find(self, kind: type[Exception]) -> WireError | None:
        if kind not in self._found:
            rows = (self.rows[each] for each in kind.__mro__ if each in self.rows)
            self._found[kind] = next(rows, None)
        return self._found[kind]

    def _opaque(self, request_id: str) -> Status:
        message = "Something went wrong on our side. Report the request id."
        status = Status(code=INTERNAL.code.value[0], message=message)
        metadata = {"requestId": request_id} if request_id else {}
        _pack(status, ErrorInfo(reason=INTERNAL.reason, domain=self.domain, metadata=metadata))
        for detail in self._details_of(DomainError(message)) if self._details_of else ():
            _pack(status, detail)
        return status


class RemoteError(Exception):
    """What a peer answered instead of a result.

    `reason` and `domain` are empty when the peer said nothing typed, as when the channel broke.
    """

    def __init__(  # noqa: PLR0913 (the parts of a google.rpc.Status; keyword-only)
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason: str = "",
        domain: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta | None = None,
        details: Sequence[PackedMessage] = (),
    ) -> None:
        """Make an error from the parts of a status."""
        super().__init__(f"{code.name} {reason}: {message}" if reason else f"{code.name}: {message}")
        self.message = message
        self.code = code
        self.reason = reason
        self.domain = domain
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.details = tuple(details)

    def detail(self, kind: type[Detail]) -> Detail | None:
        """Return the detail of type `kind`, when there is one."""
        return _unpack(self.details, kind)


def error_from_rpc(error: grpc.aio.AioRpcError) -> RemoteError:
    """Return what a failed call says."""
    if error.code() is grpc.StatusCode.CANCELLED:
        # Our own cancelling is told by asyncio. This is gRPC at a server that stopped: calls that it had received and
        # not begun, and those that outlasted its drain, end so, and can be made again at another replica.
        return RemoteError("The server stopped before it answered.", code=grpc.StatusCode.UNAVAILABLE)
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            try:
                status = Status.FromString(value)
            except DecodeError:
                break
            if status.code == error.code().value[0]:
                return remote_error(status)
    return RemoteError(error.details() or "", code=error.code())


def remote_error(status: Status) -> RemoteError:
    """Return what a status, for example of a batch's item, says."""
    details = list(status.details)
    info = _unpack(details, ErrorInfo)
    retry = _unpack(details, RetryInfo)
    return RemoteError(
        status.message,
        code=_CODES.get(status.code, grpc.StatusCode.UNKNOWN),
        reason=info.reason if info else "",
        domain=info.domain if info else "",
        metadata=dict(info.metadata) if info else None,
        retry_after=retry.retry_delay.ToTimedelta() if retry else None,
        details=details,
    )


def status_trailers(status: Status) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata that carries the details of `status`."""
    return ((STATUS_DETAILS_KEY, status.SerializeToString()),)


def grpc_code(status: Status) -> grpc.StatusCode:
    """Return the code of `status`."""
    return _CODES.get(status.code, grpc.StatusCode.UNKNOWN)


def lower_camel(name: str) -> str:
    """Return `provider_key_id` as `providerKeyId`."""
    return re.sub(r"_([a-z0-9])", lambda found: found[1].upper(), name)


def table_faults(table: ErrorTable, *, errors: Sequence[type[DomainError]], reasons: Sequence[str]) -> list[str]:
    """Return how `table`, the errors that a service defines and the reasons that its proto documents differ.

    Args:
        table: The service's table.
        errors: Every `DomainError` that the service's domain defines.
        reasons: The names of the values of the proto's `ErrorReason`, with their `ERROR_REASON_` prefix.
    """
    documented = {name.removeprefix("ERROR_REASON_") for name in reasons} - {"UNSPECIFIED"}
    rows = set(table.rows) - set(COMMON_ROWS)
    return [
        *sorted(f"{error.__name__} has no row" for error in set(errors) - set(table.rows)),
        *sorted(f"{error.__name__} has a row and is no error of the domain" for error in rows - set(errors)),
        *sorted(f"{reason} is sent and not documented" for reason in table.reasons - documented),
        *sorted(f"{reason} is documented and never sent" for reason in documented - table.reasons),
    ]


def _pack(status: Status, detail: Message) -> None:
    status.details.add().Pack(detail)


def _unpack(details: Sequence[PackedMessage], kind: type[Detail]) -> Detail | None:
    for packed in details:
        if packed.TypeName() == kind.DESCRIPTOR.full_name:
            found = kind()
            try:
                packed.Unpack(found)
            except DecodeError:
                continue
            return found
    return None


def _retry_info(retry_after: timedelta) -> RetryInfo:
    info = RetryInfo()
    info.retry_delay.FromTimedelta(max(retry_after, timedelta(0)))
    return info


# The stubs of google.rpc are older than its messages: `reason` and the quota's own fields exist at run time.
def _bad_request(violations: Sequence[FieldViolation], bytes_max: int) -> BadRequest:
    """Return as many of the violations as have room; one at least, because it names what to mend first."""
    found = BadRequest()
    for each in violations:
        violation = found.field_violations.add(field=each.field, description=_shortened(each.description))
        violation.reason = each.reason  # type: ignore[attr-defined]  # as above
        if found.ByteSize() > bytes_max and len(found.field_violations) > 1:
            del found.field_violations[-1]
            break
    return found


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…"


def _quota_failure(error: DomainError) -> QuotaFailure:
    found = QuotaFailure()
    for each in error.quota:
        violation = found.violations.add(subject=each.subject, description=each.description)
        violation.quota_metric = each.quota_metric  # type: ignore[attr-defined]  # stubs lag
        violation.quota_id = each.quota_id  # type: ignore[attr-defined]  # stubs lag
        violation.quota_value = each.quota_value  # type: ignore[attr-defined]  # stubs lag
    return found
