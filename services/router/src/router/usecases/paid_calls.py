"""What one paid provider call is made of: the question, whose key it runs on, its hold, and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from router.domain.leases import Account, Lease, Payer, PlatformCause
from router.domain.receipts import PricedUsage
from router.domain.reservations import Charge, Estimate, FinalOutcome, Grant, Release, Reserve
from router.domain.routes import Route

if TYPE_CHECKING:
    from catalogue.models import EmbeddingSpace, Operation
    from router.domain import errors
    from router.domain.usage import Usage
    from router.domain.wire import WireRequest, WireResponse

Value_co = TypeVar("Value_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Bounds of an operation's provider calls.

    Attributes:
        attempt_timeout: How long one attempt may take.
        attempts_max: Attempts of one question, over all candidates.
        candidates_max: Keys tried for one question.
        lease_losses_max: How often a lease may end before its first byte.
        attempt_pause: Before another attempt on the key of one that may have been billed; it grows with each.
        settle_margin: Kept free at the end of the deadline to settle and to answer.
        hold_margin: How much longer than the deadline a hold stands.
        hold_ttl_max: The longest hold.
    """

    attempt_timeout: timedelta
    attempts_max: int
    candidates_max: int
    lease_losses_max: int
    attempt_pause: timedelta
    settle_margin: timedelta
    hold_margin: timedelta
    hold_ttl_max: timedelta


class Question(Protocol[Value_co]):
    """What is asked of a provider, in a form that any route can be asked."""

    @property
    def operation(self) -> Operation:
        """Return the operation whose mapping and requirements choose the model."""
        ...

    @property
    def required_space(self) -> EmbeddingSpace | None:
        """Return the embedding space that the route must serve."""
        ...

    def build(self, route: Route, output_tokens: int | None, /) -> WireRequest:
        """Return the request, with at most so much output; unset, with the most that makes sense."""
        ...

    def estimate(self, route: Route, request: WireRequest, /) -> Estimate:
        """Return the most that the call can use.

        Raises:
            PriceUnknownError: No price is known, so that no cap could hold.
        """
        ...

    def read(self, response: WireResponse, route: Route, /) -> tuple[Value_co, PricedUsage | None]:
        """Return the answer and what it consumed, ``None`` when the vendor does not say.

        Raises:
            ProviderError: The answer is an error, or of no form that the vendor documents.
        """
        ...

    def price(self, usage: Usage, route: Route, /) -> PricedUsage | None:
        """Return what a failed call consumed and cost."""
        ...

    def classify(self, response: WireResponse, route: Route, /) -> errors.ProviderError:
        """Return what a bad status means, by the vendor's table."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Funding:
    """Whose key a call runs on, and whom it is charged to."""

    lease: Lease
    account: Account
    owner_id: str
    binding_index: int
    platform_cause: PlatformCause | None = None

    @property
    def payer(self) -> Payer:
        """Return who pays the provider."""
        return Payer.PLATFORM if self.platform_cause is not None else self.lease.payer


@dataclass(frozen=True, slots=True, kw_only=True)
class Paid(Generic[Value_co]):
    """A provider's answer whose hold is still to be settled."""

    value: Value_co
    usage: PricedUsage | None
    route: Route
    reserve: Reserve
    grant: Grant
    latency: timedelta

    def charge(self, *, is_final: bool, sealed_answer: bytes = b"") -> Charge:
        """Return the truth about the call, for its settlement."""
        return Charge(
            reserve=self.reserve,
            grant=self.grant,
            usage=self.usage,
            provider_latency=self.latency,
            is_final=is_final,
            sealed_answer=sealed_answer,
        )


@dataclass(slots=True, kw_only=True)
class Held:
    """A hold that is to be disposed of, and whether anything has been sent on it."""

    route: Route
    reserve: Reserve
    grant: Grant
    is_sent: bool = False

    def charge(self, usage: PricedUsage | None, *, is_final: bool) -> Charge:
        """Return what is known of the money; without a usage, the hold stays at its estimate."""
        return Charge(
            reserve=self.reserve, grant=self.grant, usage=usage, provider_latency=timedelta(0), is_final=is_final
        )

    def release(self) -> Release:
        """Return that nothing was billed."""
        return Release(reserve=self.reserve, grant=self.grant)


class AlreadyFinal(Exception):  # noqa: N818 (no error: the operation's outcome is known and is to be given again)
    """Metering has the outcome of this operation."""

    def __init__(self, outcome: FinalOutcome) -> None:
        """Carry the outcome to whoever can open it."""
        super().__init__("the operation is closed")
        self.outcome = outcome
