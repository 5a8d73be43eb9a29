"""The one table that gives Metering's errors their codes and reasons."""

from typing import Final

import grpc

from metering.domain.errors import (
    AccountNotFoundError,
    AgentAlreadyRegisteredError,
    AgentNotFoundError,
    AlreadySettledError,
    CapReachedError,
    CustodyLogRolledBackError,
    DependencyUnavailableError,
    EtagMismatchError,
    InProgressError,
    LimitNotFoundError,
    PlanLimitReachedError,
    PlatformNotPayingError,
    RebuildingError,
    RequestIdReusedError,
    ReservationClosedError,
)
from servicekit.errors import UnavailableError
from servicekit.wire import ErrorTable, WireError

_Code = grpc.StatusCode

TABLE: Final = ErrorTable(
    "byok.metering",
    {
        RequestIdReusedError: WireError(_Code.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
        InProgressError: WireError(_Code.ABORTED, "IN_PROGRESS"),
        CapReachedError: WireError(
            _Code.RESOURCE_EXHAUSTED,
            "CAP_REACHED",
            ("limit_id", "scope", "operation", "unit", "window", "limit", "remaining", "reset_time"),
        ),
        PlatformNotPayingError: WireError(_Code.FAILED_PRECONDITION, "PLATFORM_NOT_PAYING", ("cause", "rule")),
        AgentNotFoundError: WireError(_Code.NOT_FOUND, "AGENT_NOT_FOUND", ("agent_id",)),
        AccountNotFoundError: WireError(_Code.NOT_FOUND, "ACCOUNT_NOT_FOUND"),
        LimitNotFoundError: WireError(_Code.NOT_FOUND, "LIMIT_NOT_FOUND", ("limit_id",)),
        AgentAlreadyRegisteredError: WireError(_Code.FAILED_PRECONDITION, "AGENT_ALREADY_REGISTERED", ("agent_id",)),
        RebuildingError: WireError(_Code.UNAVAILABLE, "REBUILDING"),
        DependencyUnavailableError: WireError(_Code.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", ("dependency",)),
        UnavailableError: WireError(_Code.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", ("dependency",)),
        AlreadySettledError: WireError(_Code.FAILED_PRECONDITION, "ALREADY_SETTLED", ("reservation_id",)),
        ReservationClosedError: WireError(_Code.FAILED_PRECONDITION, "RESERVATION_CLOSED", ("reservation_id",)),
        PlanLimitReachedError: WireError(_Code.FAILED_PRECONDITION, "PLAN_LIMIT_REACHED", ("plan", "limit")),
        EtagMismatchError: WireError(_Code.ABORTED, "ETAG_MISMATCH"),
        CustodyLogRolledBackError: WireError(_Code.FAILED_PRECONDITION, "CUSTODY_LOG_ROLLED_BACK", ("witnessed_size",)),
    },
)
