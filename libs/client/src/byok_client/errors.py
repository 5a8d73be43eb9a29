"""What a call of the suite can end with instead of an answer.

For an operation there is one question, and `Held` answers it: the content is held. Whatever is not understood (a broken
channel, a reason of a newer release) is held too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, QuotaFailure

from byok.router.v1.operation_result_pb2 import DISPOSITION_HOLD, OperationFailure
from servicekit.wire import RemoteError

# Reasons under which the same request may succeed later, when no OperationFailure says so itself.
_RETRYABLE: Final = frozenset(
    {
        "IN_PROGRESS",
        "OVERLOADED",
        "PROVIDER_RATE_LIMITED",
        "SUITE_UNAVAILABLE",
        "DEPENDENCY_UNAVAILABLE",
        "REBUILDING",
        "KEK_UNAVAILABLE",
        "AUDIT_UNAVAILABLE",
        "DEADLINE_EXCEEDED",
    }
)
_RETRYABLE_CODES: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One field that was refused, or one limit that was reached, and what to do."""

    subject: str
    description: str


class ByokError(Exception):
    """A refusal or failure of the suite.

    Attributes:
        reason: Name of the service's `ErrorReason` without its prefix; empty when nothing typed came back.
        code: The gRPC code.
        message: What happened and what to do.
        metadata: The documented facts of the reason, such as `resetTime` of CAP_REACHED.
        retry_after: What the service asks to wait before the same call is made again.
        violations: Fields or limits, where the reason names some.
        is_retryable: The same call, under the same request id, may succeed later.
    """

    def __init__(self, error: RemoteError) -> None:
        """Make the error of what a service answered."""
        super().__init__(str(error))
        self.reason: str = error.reason
        self.code: grpc.StatusCode = error.code
        self.message: str = error.message
        self.metadata: Mapping[str, str] = error.metadata
        self.retry_after: timedelta | None = error.retry_after
        self.violations: Sequence[Violation] = _violations(error)
        self.is_retryable: bool = error.reason in _RETRYABLE or (not error.reason and error.code in _RETRYABLE_CODES)


class Held(ByokError):  # noqa: N818 (it says what happens to the content)
    """The operation gave no answer that may be used: hold the content.

    Attributes:
        disposition: Always HOLD.
        failure: What Router says of it, who was charged included; None when nothing typed came back.
        answer: What Router answered, when it is an answer that this client cannot use.
        retry_time: Not before this time, where it is known.
    """

    disposition: Final = DISPOSITION_HOLD

    def __init__(self, error: RemoteError, *, answer: Message | None = None) -> None:
        """Make the error of what Router answered, or of what it did not."""
        super().__init__(error)
        self.answer = answer
        self.failure: OperationFailure | None = error.detail(OperationFailure)
        self.retry_time: datetime | None = None
        if self.failure is not None:
            self.is_retryable = self.failure.retryable
            if self.failure.HasField("retry_time"):
                self.retry_time = self.failure.retry_time.ToDatetime(tzinfo=UTC)


def unusable(answer: Message, why: str) -> Held:
    """Return the error of an answer that came and must not be acted on."""
    return Held(RemoteError(why, code=grpc.StatusCode.UNKNOWN, reason="ANSWER_NOT_USABLE"), answer=answer)


def _violations(error: RemoteError) -> Sequence[Violation]:
    bad = error.detail(BadRequest) or BadRequest()
    quota = error.detail(QuotaFailure) or QuotaFailure()
    return (
        *(Violation(subject=each.field, description=each.description) for each in bad.field_violations),
        *(Violation(subject=each.subject, description=each.description) for each in quota.violations),
    )
