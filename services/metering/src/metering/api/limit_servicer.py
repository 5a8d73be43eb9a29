"""LimitService: limits of accounts, and what is used of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from byok.metering.v1 import limit_service_pb2, limit_service_pb2_grpc
from byok.type.v1 import account_pb2, operation_pb2
from metering.api.fields import (
    account_from,
    account_to,
    ensure_distinct,
    invalid,
    operation_from,
    optional_identifier,
    principal_from,
    time_to,
)
from metering.api.page_tokens import page_size, page_token, position_of
from metering.api.replays import Replays
from metering.domain.accounts import PLATFORM, AccountKey, check_identifier
from metering.domain.enums import Payer, ScopeKind, Unit, Window
from metering.domain.limits import OWN_PAYERS, Limit, LimitCounter, Scope
from metering.domain.money import check_amount
from metering.usecases.change_limits import ListLimits, RemoveLimit, SetLimit
from servicekit.identity import current_caller

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitUseCases:
    """What the service does."""

    set_limit: SetLimit
    remove_limit: RemoveLimit
    list_limits: ListLimits


class LimitServicer(limit_service_pb2_grpc.LimitServiceServicer):
    """Takes calls, asks use cases, answers."""

    def __init__(self, usecases: LimitUseCases, replays: Replays) -> None:
        """Serve use cases."""
        self._do = usecases
        self._replays = replays

    @override
    async def SetLimit(
        self, request: limit_service_pb2.SetLimitRequest, context: "Context"
    ) -> limit_service_pb2.SetLimitResponse:
        principal = principal_from(request.acting_for, current_caller())
        limit = limit_from(request.limit)

        async def run() -> limit_service_pb2.SetLimitResponse:
            written, is_applied = await self._do.set_limit(limit, etag=request.limit.etag, acting_for=principal)
            return limit_service_pb2.SetLimitResponse(limit=limit_to(written), is_pending=not is_applied)

        return await self._replays(
            "SetLimit",
            request,
            principal,
            request_id=request.request_id,
            kind=limit_service_pb2.SetLimitResponse,
            run=run,
        )

    @override
    async def RemoveLimit(
        self, request: limit_service_pb2.RemoveLimitRequest, context: "Context"
    ) -> limit_service_pb2.RemoveLimitResponse:
        principal = principal_from(request.acting_for, current_caller())
        account = account_from(request.account, "account")
        check_identifier(request.limit_id, "limit_id")

        async def run() -> limit_service_pb2.RemoveLimitResponse:
            is_applied = await self._do.remove_limit(account, request.limit_id, principal)
            return limit_service_pb2.RemoveLimitResponse(is_pending=not is_applied)

        return await self._replays(
            "RemoveLimit",
            request,
            principal,
            request_id=request.request_id,
            kind=limit_service_pb2.RemoveLimitResponse,
            run=run,
        )

    @override
    async def ListLimits(
        self, request: limit_service_pb2.ListLimitsRequest, context: "Context"
    ) -> limit_service_pb2.ListLimitsResponse:
        principal = principal_from(request.acting_for, current_caller())
        account = account_from(request.account, "account")
        count = page_size(request.page_size)
        optional_identifier(request.agent_id, "agent_id")
        bound_to = ("ListLimits", account, request.agent_id)
        after = position_of(request.page_token, *bound_to)
        view = await self._do.list_limits(account, principal, agent_id=request.agent_id)
        rest = [counter for counter in view.counters if counter.limit.limit_id > after]
        following = page_token(rest[count - 1].limit.limit_id, *bound_to) if len(rest) > count else ""
        return limit_service_pb2.ListLimitsResponse(
            limits=[_usage(counter) for counter in rest[:count]],
            next_page_token=following,
            as_of_time=time_to(view.as_of),
        )


def limit_from(message: limit_service_pb2.Limit) -> Limit:
    """Return the limit that a message describes.

    Raises:
        InvalidArgumentError: A field cannot be accepted.
    """
    account = account_from(message.account, "limit.account")
    check_amount(message.amount, "limit.amount")
    if message.unit not in {unit.value for unit in Unit}:
        raise invalid("limit.unit", "UNIT_MISSING", "must be CALLS, TOKENS or COST")
    if message.window not in {window.value for window in Window}:
        raise invalid("limit.window", "WINDOW_MISSING", "must be MINUTE, HOUR, DAY or MONTH")
    if message.enforcement not in {0, 1, 2}:
        raise invalid("limit.enforcement", "ENFORCEMENT_UNKNOWN", "must be HARD or SOFT")
    ensure_distinct(message.payers, "limit.payers")
    if not set(message.payers) <= {payer.value for payer in Payer}:
        raise invalid("limit.payers", "PAYER_UNKNOWN", "must be OWNER, ORGANIZATION or PLATFORM")
    payers = frozenset(Payer(payer) for payer in message.payers)
    # The platform's own account counts the platform's money; everyone else's, their own.
    default = frozenset({Payer.PLATFORM}) if account == PLATFORM else OWN_PAYERS
    return Limit(
        account=account,
        scope=_scope(message),
        operation=operation_from(message.operation, "limit.operation") if message.operation else None,
        unit=Unit(message.unit),
        window=Window(message.window),
        payers=payers or default,
        amount=message.amount,
        is_hard=message.enforcement != limit_service_pb2.LIMIT_ENFORCEMENT_SOFT,
        is_utc=account == PLATFORM,
    )


def limit_to(limit: Limit) -> limit_service_pb2.Limit:
    """Return the message of a limit."""
    message = limit_service_pb2.Limit(
        limit_id=limit.limit_id,
        account=account_to(AccountKey(limit.account)),
        operation=operation_pb2.Operation.ValueType(int(limit.operation or 0)),
        unit=limit_service_pb2.LimitUnit.ValueType(limit.unit.value),
        window=limit_service_pb2.LimitWindow.ValueType(limit.window.value),
        payers=[account_pb2.Payer.ValueType(payer.value) for payer in sorted(limit.payers)],
        enforcement=limit_service_pb2.LIMIT_ENFORCEMENT_HARD
        if limit.is_hard
        else limit_service_pb2.LIMIT_ENFORCEMENT_SOFT,
        amount=limit.amount,
        is_default=limit.is_default,
        etag=limit.etag,
    )
    if limit.scope.kind is ScopeKind.ACCOUNT:
        message.whole_account = True
    elif limit.scope.kind is ScopeKind.OWNER:
        message.owner_id = limit.scope.scope_id
    else:
        message.agent_id = limit.scope.scope_id
    if limit.update_time is not None:
        message.update_time.CopyFrom(time_to(limit.update_time))
    return message


def _scope(message: limit_service_pb2.Limit) -> Scope:
    kind = message.WhichOneof("scope")
    if kind == "owner_id":
        check_identifier(message.owner_id, "limit.owner_id")
        return Scope(ScopeKind.OWNER, message.owner_id)
    if kind == "agent_id":
        check_identifier(message.agent_id, "limit.agent_id")
        return Scope(ScopeKind.AGENT, message.agent_id)
    if kind == "whole_account" and not message.whole_account:
        raise invalid("limit.whole_account", "SCOPE_MISSING", "only true is valid")
    return Scope(ScopeKind.ACCOUNT)


def _usage(counter: LimitCounter) -> limit_service_pb2.LimitUsage:
    return limit_service_pb2.LimitUsage(
        limit=limit_to(counter.limit),
        settled_amount=counter.settled,
        held_amount=counter.held,
        suspense_amount=counter.suspense,
        remaining_amount=counter.remaining,
        reset_time=time_to(counter.span.end_time),
    )
