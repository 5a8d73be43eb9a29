"""Everything that Metering refuses or cannot do, one class a claim."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from metering.domain.limits import LimitDenial
from servicekit.errors import DomainError, QuotaViolation, UnavailableError

_RETRY_SOON: Final = timedelta(milliseconds=500)


class RequestIdReusedError(DomainError):
    """The request id was used with another body."""


class InProgressError(DomainError):
    """Another Router holds a reservation for this request id."""

    def __init__(self, message: str, /, *, retry_after: timedelta) -> None:
        """Make an error that asks the caller to come back after `retry_after`."""
        super().__init__(message)
        self.retry_after = retry_after


class CapReachedError(DomainError):
    """A hard limit is reached. It carries when the limit starts afresh, and no retry time: retrying does not help."""

    def __init__(self, denials: Sequence[LimitDenial]) -> None:
        """Make an error from every limit that did not let the call through; the one that lasts longest is named."""
        last = max(denials, key=lambda denial: denial.reset_time)
        reset = last.reset_time.isoformat().replace("+00:00", "Z")
        window, unit = last.window.name.lower(), last.unit.name.lower()
        super().__init__(
            f"The {unit} limit per {window} is reached: {last.remaining} of {last.amount} remain, "
            f"{last.requested} are needed. It starts afresh at {reset}; raise the limit, or wait until then.",
            limit_id=last.limit_id,
            scope=last.scope,
            operation=last.operation,
            unit=last.unit.name,
            window=last.window.name,
            limit=last.amount,
            remaining=last.remaining,
            reset_time=reset,
        )
        self.quota = tuple(_violation(denial) for denial in denials)


class PlatformNotPayingError(DomainError):
    """The platform's policy does not pay for this."""


class AgentNotFoundError(DomainError):
    """The agent is not registered, or is another owner's."""


class AccountNotFoundError(DomainError):
    """The account has no agent, or is another owner's."""


class LimitNotFoundError(DomainError):
    """There is no such limit, or it is another owner's."""


class AgentAlreadyRegisteredError(DomainError):
    """The agent belongs to another account or owner."""


class RebuildingError(DomainError):
    """Redis was lost or replaced; counters are being rebuilt from the ledger."""

    retry_after = _RETRY_SOON


class DependencyUnavailableError(UnavailableError):
    """Redis, Postgres or KeyVault cannot be reached, or the licence to admit has ended."""

    retry_after = _RETRY_SOON


class CustodyLogRolledBackError(DomainError):
    """KeyVault's audit log is not the one that was witnessed; nothing is admitted until an operator accepts it.

    It carries no retry time: what was revoked may be in force again, and only a person can tell.
    """


class AlreadySettledError(DomainError):
    """The reservation was settled already with other figures."""


class ReservationClosedError(DomainError):
    """The reservation is closed."""


class PlanLimitReachedError(DomainError):
    """The plan of the account does not allow another agent."""


class EtagMismatchError(DomainError):
    """The limit changed since it was read."""


def _violation(denial: LimitDenial) -> QuotaViolation:
    reset = denial.reset_time.isoformat().replace("+00:00", "Z")
    return QuotaViolation(
        subject=denial.scope,
        description=f"{denial.remaining} of {denial.amount} remain until {reset}",
        quota_metric=f"{denial.unit.name.lower()}/{denial.window.name.lower()}",
        quota_id=denial.limit_id,
        quota_value=denial.amount,
    )


class FencedFlushError(Exception):
    """A partition is another replica's by now, or is not where it was thought to be. Nothing was written."""


class EvictingStoreError(Exception):
    """Redis is set to evict keys when memory is short: counters would vanish and read as unlimited."""
