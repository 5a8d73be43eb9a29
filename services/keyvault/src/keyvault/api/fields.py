"""Fields that several messages share, from protobuf to the domain and back. Pure."""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar

from byok.keyvault.v1 import provider_key_pb2
from byok.type.v1 import account_pb2
from keyvault.domain.new_keys import check_text, refused
from keyvault.domain.ownership import PLATFORM, Account, AccountKind, Principal, check_identifier, owner_account
from keyvault.domain.provider_keys import Operation, OperationRoute
from servicekit.errors import CallerNotAllowedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.timestamp_pb2 import Timestamp

    from servicekit.identity import Caller

ACTOR_CHARACTERS_MAX: Final = 128
ROUTES_MAX: Final = 16
WORDS_MAX: Final = 16
ORGANIZATIONS_MAX: Final = 100
# Router names the operator on whose behalf a key is tested, after it has checked its own caller's role.
MAY_NAME_OPERATORS: Final = frozenset({"operator", "router"})

AnyEnum = TypeVar("AnyEnum", bound=enum.IntEnum)


def enum_from(kind: type[AnyEnum], value: int, field: str) -> AnyEnum:
    """Return the member of `kind` with the number `value`.

    Raises:
        InvalidArgumentError: it is not set, or not known to this release.
    """
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(member.name for member in kind)
        raise refused(field, "ENUM_UNKNOWN" if value else "REQUIRED", f"Send one of: {names}.") from None


def time_from(message: Timestamp, field: str) -> datetime:
    """Return the time in `message`. Raises InvalidArgumentError when it is none that a calendar has."""
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise refused(field, "OUT_OF_RANGE", "Send a time between the years 1 and 9999.") from None


def actor_from(actor: str) -> str:
    """Return who asks, for the log.

    Raises:
        InvalidArgumentError: nobody is named, or the name is too long or holds control characters.
    """
    checked = check_text("actor", actor, characters_max=ACTOR_CHARACTERS_MAX)
    if not checked:
        raise refused("actor", "REQUIRED", "Name the person or service that asks, for the audit log.")
    return checked


def principal_from(message: account_pb2.Principal, caller: Caller, field: str = "acting_for") -> Principal:
    """Return on whose behalf the call is made.

    Raises:
        InvalidArgumentError: nobody is named, or not by an id.
        CallerNotAllowedError: an operator is named by a caller without that role.
    """
    if len(message.organization_ids) > ORGANIZATIONS_MAX:
        raise refused(f"{field}.organization_ids", "TOO_MANY", f"Send at most {ORGANIZATIONS_MAX}.")
    kind = message.WhichOneof("kind")
    if kind == "owner_id":
        return Principal(
            owner_id=check_identifier(f"{field}.owner_id", message.owner_id),
            organization_ids=frozenset(
                check_identifier(f"{field}.organization_ids", each) for each in message.organization_ids
            ),
        )
    if kind == "operator_id":
        if MAY_NAME_OPERATORS.isdisjoint(caller.roles):
            raise CallerNotAllowedError("only a caller with the role operator may act as an operator")
        return Principal(operator_id=check_identifier(f"{field}.operator_id", message.operator_id))
    raise refused(field, "REQUIRED", "Say on whose behalf the call is made: owner_id or operator_id.")


def account_from(message: account_pb2.Account, field: str) -> Account:
    """Return the account in `message`. Raises InvalidArgumentError when none is named."""
    kind = message.WhichOneof("kind")
    if kind == "owner_id":
        return owner_account(check_identifier(f"{field}.owner_id", message.owner_id))
    if kind == "organization_id":
        organization_id = check_identifier(f"{field}.organization_id", message.organization_id)
        return Account(AccountKind.ORGANIZATION, organization_id)
    if kind == "platform" and message.platform:
        return PLATFORM
    raise refused(field, "REQUIRED", "Name an owner, an organization, or the platform.")


def account_to(account: Account) -> account_pb2.Account:
    """Return `account` as a message."""
    if account.kind is AccountKind.OWNER:
        return account_pb2.Account(owner_id=account.party_id)
    if account.kind is AccountKind.ORGANIZATION:
        return account_pb2.Account(organization_id=account.party_id)
    return account_pb2.Account(platform=True)


def mapping_from(messages: Iterable[provider_key_pb2.OperationRoute]) -> tuple[OperationRoute, ...]:
    """Return a mapping, its operations known, its words not yet checked.

    Raises:
        InvalidArgumentError: an operation is unknown, or there are more routes or words than any key needs.
    """
    routes = list(messages)
    if len(routes) > ROUTES_MAX:
        raise refused("mapping", "TOO_MANY_ROUTES", f"Send at most {ROUTES_MAX} routes, one for each operation.")
    return tuple(_route_from(route, f"mapping[{position}]") for position, route in enumerate(routes))


def route_to(route: OperationRoute) -> provider_key_pb2.OperationRoute:
    """Return `route` as a message."""
    return provider_key_pb2.OperationRoute(
        operation=int(route.operation),  # type: ignore[arg-type]  # the numbers are the contract's own
        model=route.model,
        tier=route.tier,
        capabilities=route.capabilities,
        features=route.features,
        context_window_tokens=route.context_window_tokens,
        dimensions=route.dimensions,
    )


def _route_from(route: provider_key_pb2.OperationRoute, field: str) -> OperationRoute:
    if len(route.capabilities) > WORDS_MAX or len(route.features) > WORDS_MAX:
        raise refused(field, "TOO_MANY_WORDS", f"Send at most {WORDS_MAX} capabilities and features.")
    operation = enum_from(Operation, route.operation, f"{field}.operation")
    if operation is Operation.KEY_VALIDATION:
        raise refused(
            f"{field}.operation", "OPERATION_NOT_MAPPED", "Map what the key is for; validation follows the mapping."
        )
    return OperationRoute(
        operation=operation,
        model=route.model,
        tier=route.tier,
        capabilities=tuple(route.capabilities),
        features=tuple(route.features),
        context_window_tokens=route.context_window_tokens,
        dimensions=route.dimensions,
    )
