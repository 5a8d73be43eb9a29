"""The root of every error that a BYOK service raises on purpose.

A domain error says what happened in words of the domain and carries facts. It knows nothing of gRPC: each service's one
error table (`servicekit.wire.ErrorTable`) gives it a code and a reason. Facts and messages reach callers and logs, so a
secret, a provider's body or SQL must never be among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """One field of a request that cannot be accepted, why, and what to do.

    `field` is the path in the request (`agent_id`, `texts[3]`), `reason` an UPPER_SNAKE word that a program can test.
    """

    field: str
    reason: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaViolation:
    """One limit that would be passed.

    `subject` names who is limited, `description` says what remains and until when.
    """

    subject: str
    description: str
    quota_metric: str = ""
    quota_id: str = ""
    quota_value: int = 0


class DomainError(Exception):
    """Something the domain refuses or cannot do; subclass it once per claim.

    It is not a frozen dataclass, because `contextlib` assigns `__traceback__` and would mask the error.
    """

    retry_after: timedelta | None = None
    violations: Sequence[FieldViolation] = ()
    quota: Sequence[QuotaViolation] = ()

    def __init__(self, message: str, /, **facts: str | int) -> None:
        """Make an error that says `message` and carries `facts`, none of which may be a secret."""
        super().__init__(message)
        self.message = message
        self.facts: dict[str, str | int] = facts


class InvalidArgumentError(DomainError):
    """The request cannot be accepted as it is; the violations name each field and its remedy."""

    def __init__(self, message: str = "", /, *, violations: Sequence[FieldViolation]) -> None:
        """Make an error from its violations; without a message, their descriptions are the message."""
        said = message or "; ".join(f"{each.field}: {each.description}" for each in violations)
        super().__init__(said)
        self.violations = tuple(violations)


class OverloadedError(DomainError):
    """This process has as much queued work as it may hold; the same call may succeed after `retry_after`."""

    def __init__(self, message: str, /, *, retry_after: timedelta = timedelta(seconds=1), **facts: str | int) -> None:
        """Make an error that asks the caller to come back after `retry_after`."""
        super().__init__(message, **facts)
        self.retry_after = retry_after


class UnavailableError(DomainError):
    """Something this service stands on is away, or the service is stopping; nothing was done and a retry is safe."""


class CallerNotAllowedError(DomainError):
    """The caller's certificate names no role that may use this RPC."""


class DeadlineExceededError(DomainError):
    """The work did not end within the time that the caller gave."""
