"""Fields that several messages share, checked and turned into the domain's own."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from byok.type.v1 import account_pb2, operation_pb2
from metering.domain.accounts import PLATFORM, AccountKey, account_id, account_key, account_kind, check_identifier
from metering.domain.enums import AccountKind, Operation
from metering.domain.principals import Principal
from metering.domain.reservations import id_ms
from servicekit.errors import FieldViolation, InvalidArgumentError
from servicekit.identity import Caller
from servicekit.ids import check_request_id

BODY_HASH_BYTES: Final = 32
# Half of a SHA-256 tells bodies apart as surely as is of use, at half the memory an operation.
BODY_HASH_KEPT: Final = 16

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_AGE_MAX_MS: Final = 35 * 24 * 3_600_000
_AHEAD_MAX_MS: Final = 5 * 60_000
_OPERATOR_ROLE: Final = "operator"
_ORGANIZATIONS_MAX: Final = 100
# The first second of the year 3000: windows and rollups around an asked time stay times too.
_TIME_END_SECONDS: Final = 32_503_680_000
_NANOS: Final = 1_000_000_000
_OPERATIONS: Final = {operation.value: operation for operation in Operation}


def invalid(field: str, reason: str, description: str) -> InvalidArgumentError:
    """Return the error that one field cannot be accepted."""
    return InvalidArgumentError(violations=[FieldViolation(field=field, reason=reason, description=description)])


def checked_request_id(value: str, now: datetime, now_ms: int, *, field: str = "request_id") -> str:
    """Return a request id that can be told apart from a repetition."""
    try:
        age_ms = now_ms - id_ms(value)
    except ValueError:
        age_ms = _AGE_MAX_MS + 1
    if not -_AHEAD_MAX_MS <= age_ms <= _AGE_MAX_MS:
        check_request_id(value, now, field=field)
    return value


def optional_identifier(value: str, field: str) -> str:
    """Return an id of the platform's that may be left out.

    Raises:
        InvalidArgumentError: It is not one; a database would choke on some of what is none.
    """
    if value:
        check_identifier(value, field)
    return value


@lru_cache(maxsize=4_096)
def is_uuid(value: str) -> bool:
    """Tell whether a text is a canonical UUID."""
    return _UUID.fullmatch(value) is not None


def account_from(message: account_pb2.Account, field: str) -> AccountKey:
    """Return the account that a message names."""
    kind = message.WhichOneof("kind")
    if kind == "owner_id":
        check_identifier(message.owner_id, f"{field}.owner_id")
        return account_key(AccountKind.OWNER, message.owner_id)
    if kind == "organization_id":
        check_identifier(message.organization_id, f"{field}.organization_id")
        return account_key(AccountKind.ORGANIZATION, message.organization_id)
    if kind == "platform" and message.platform:
        return PLATFORM
    raise invalid(field, "ACCOUNT_MISSING", "must name an owner, an organization, or the platform")


def account_to(account: AccountKey) -> account_pb2.Account:
    """Return the message that names an account."""
    kind = account_kind(account)
    if kind is AccountKind.OWNER:
        return account_pb2.Account(owner_id=account_id(account))
    if kind is AccountKind.ORGANIZATION:
        return account_pb2.Account(organization_id=account_id(account))
    return account_pb2.Account(platform=True)


def operation_from(value: int, field: str) -> Operation:
    """Return the operation of an enum value, which must be a known one."""
    operation = _OPERATIONS.get(value)
    if operation is None:
        raise invalid(field, "OPERATION_UNKNOWN", "must be one of the operations of byok.type.v1.Operation")
    return operation


def operation_name(value: int) -> str:
    """Return the name of an operation without its prefix; `ALL` for none in particular."""
    if value == 0:
        return "ALL"
    return operation_pb2.Operation.Name(operation_pb2.Operation.ValueType(value)).removeprefix("OPERATION_")


def principal_from(message: account_pb2.Principal, caller: Caller) -> Principal:
    """Return on whose behalf a call is made.

    Raises:
        InvalidArgumentError: It names nobody, or an operator without the role.
    """
    organizations = tuple(message.organization_ids)
    if len(organizations) > _ORGANIZATIONS_MAX:
        raise invalid("acting_for.organization_ids", "TOO_MANY", f"must be at most {_ORGANIZATIONS_MAX}")
    for i, organization in enumerate(organizations):
        check_identifier(organization, f"acting_for.organization_ids[{i}]")
    kind = message.WhichOneof("kind")
    if kind == "owner_id":
        check_identifier(message.owner_id, "acting_for.owner_id")
        return Principal(owner_id=message.owner_id, organization_ids=organizations)
    if kind == "operator_id":
        check_identifier(message.operator_id, "acting_for.operator_id")
        if _OPERATOR_ROLE not in caller.roles:
            raise invalid("acting_for.operator_id", "NOT_AN_OPERATOR", "needs a caller with the operator role")
        return Principal(operator_id=message.operator_id, organization_ids=organizations)
    raise invalid("acting_for", "PRINCIPAL_MISSING", "must name an owner or an operator")


def time_from(message: Timestamp, field: str) -> datetime | None:
    """Return a time, or nothing if it is not set.

    Raises:
        InvalidArgumentError: It is not within the years that a ledger can have.
    """
    if not message.seconds and not message.nanos:
        return None
    if not 0 <= message.seconds < _TIME_END_SECONDS or not 0 <= message.nanos < _NANOS:
        raise invalid(field, "TIME_OUT_OF_RANGE", "must be a time from 1970 to 2999")
    return message.ToDatetime(tzinfo=UTC)


def time_to(at: datetime) -> Timestamp:
    """Return the message of a time."""
    message = Timestamp()
    message.FromDatetime(at)
    return message


def ms_to(milliseconds: int) -> Timestamp:
    """Return the message of milliseconds since the epoch."""
    return Timestamp(seconds=milliseconds // 1_000, nanos=milliseconds % 1_000 * 1_000_000)


def ensure_distinct(values: Iterable[int], field: str) -> None:
    """Check that no value comes twice."""
    seen = list(values)
    if len(set(seen)) != len(seen):
        raise invalid(field, "REPEATED", "must name each value once")
