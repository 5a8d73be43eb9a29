"""One operation on its way: what it is, and what has happened to money and attempts so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from catalogue.models import Operation
from router.domain.leases import Payer
from router.domain.operations import OperationContext, Principal, Subject
from router.domain.receipts import ATTEMPTS_TOLD_MAX, AttemptFailure, FailureReport, PricedUsage, Receipt, Settlement
from router.domain.refusals import RouterError

if TYPE_CHECKING:
    from router.domain.completions import FinishReason
    from router.domain.errors import ProviderError
    from router.domain.reservations import Attribution


@dataclass(slots=True, kw_only=True)
class Run:
    """One operation's identity, and its course.

    Attributes:
        deadline: When the answer must be on its way, on the monotonic clock.
        start: When the operation began, on the monotonic clock.
        call_index: The next provider call's ordinal: retries, repairs, chunks and fallbacks count on.
        excluded_key_ids: Keys that failed in this operation.
    """

    request_id: str
    agent_id: str
    body_hash: bytes
    operation: Operation
    deadline: float
    start: float
    platform_purpose: str = ""
    acting_for: Principal | None = None
    subject: Subject | None = None
    call_index: int = 0
    calls: int = 0
    payer: Payer | None = None
    payer_rule: str = ""
    usage: PricedUsage | None = None
    settlement: Settlement = Settlement.NOT_RESERVED
    provider_latency: float = 0.0
    reservation_ids: list[str] = field(default_factory=list)
    excluded_key_ids: list[str] = field(default_factory=list)
    attempts: list[AttemptFailure] = field(default_factory=list)

    @classmethod
    def begin(cls, context: OperationContext, *, operation: Operation, deadline: float, start: float) -> Run:
        """Return the run of an operation that a caller asked for."""
        return cls(
            request_id=context.request_id,
            agent_id=context.agent_id,
            body_hash=context.body_hash,
            operation=operation,
            deadline=deadline,
            start=start,
            platform_purpose=context.platform_purpose,
            acting_for=context.acting_for,
            subject=context.subject,
        )

    def next_call_index(self) -> int:
        """Return the ordinal of a new provider call."""
        index = self.call_index
        self.call_index = index + 1
        return index

    def skip_calls(self) -> None:
        """Count on beyond the calls of earlier runs of this operation, twice as far each time."""
        self.call_index *= 2

    def add_usage(self, usage: PricedUsage) -> None:
        """Add what one more call consumed."""
        self.usage = usage if self.usage is None else self.usage.plus(usage)

    def add_settlement(self, settlement: Settlement) -> None:
        """Note how far a charge has come; the least certain one is the operation's."""
        if _UNCERTAINTY.index(settlement) > _UNCERTAINTY.index(self.settlement):
            self.settlement = settlement

    def add_failure(self, error: ProviderError, *, provider: str, model: str, key_id: str) -> None:
        """Note an attempt that failed."""
        if len(self.attempts) < ATTEMPTS_TOLD_MAX:
            self.attempts.append(
                AttemptFailure(
                    provider=provider,
                    model=model,
                    key_id=key_id,
                    failure=type(error).__name__,
                    http_status=int(error.facts.get("status", 0)),
                    may_be_billed=error.may_have_been_billed,
                )
            )

    def receipt(
        self,
        attribution: Attribution,
        *,
        model: str,
        now: float,
        finish_reason: FinishReason,
        settlement: Settlement | None = None,
    ) -> Receipt:
        """Return who paid for what, once the operation has succeeded; the settlement as it stands, unless given."""
        return Receipt(
            payer=attribution.payer,
            payer_rule=self.payer_rule,
            key_id=attribution.key_id,
            lease_id=attribution.lease_id,
            provider=attribution.provider,
            model=model,
            usage=self.usage,
            settlement=settlement or self.settlement,
            reservation_ids=tuple(self.reservation_ids),
            attempts=self.calls,
            latency=timedelta(seconds=now - self.start),
            provider_latency=timedelta(seconds=self.provider_latency),
            finish_reason=finish_reason,
        )

    def report(self, error: Exception, *, now: datetime) -> FailureReport:
        """Return what had happened when the operation failed with `error`."""
        retry_after: timedelta | None = getattr(error, "retry_after", None)
        return FailureReport(
            retryable=isinstance(error, RouterError) and error.retryable,
            retry_time=None if retry_after is None else now + retry_after,
            payer=self.payer,
            usage=self.usage,
            settlement=self.settlement,
            attempts=tuple(self.attempts),
        )


_UNCERTAINTY = (
    Settlement.NOT_RESERVED,
    Settlement.RELEASED,
    Settlement.SETTLED,
    Settlement.PENDING,
    Settlement.SUSPENSE,
)
