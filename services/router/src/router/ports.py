"""What the Router needs from the world: providers, custody, admission, kept answers. Owned by the use cases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Protocol

from catalogue.models import Operation
from router.domain.errors import ProviderError
from router.domain.leases import Account, DueKey, Lease, LeaseQuery, NoKey, Outcome
from router.domain.receipts import Settlement
from router.domain.reservations import Charge, FinalOutcome, Grant, Release, Reserve
from router.domain.wire import WireRequest, WireResponse
from servicekit.secrets import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One provider call's credentials and bounds, beside the request that the codec built.

    Attributes:
        provider: The provider's slug, named by failures.
        secret: The provider key; ``None`` for an endpoint that takes none.
        deadline: When the answer must be whole, on the monotonic clock.
        before_first_byte: Called when a connection stands and nothing has been sent yet; raises to stop the call.
        classify: Tells what a bad status means, by the vendor's table.
        on_retry: Told of each failure that is followed by another try of the same call.
    """

    provider: str
    secret: Secret | None
    deadline: float
    before_first_byte: Callable[[], None]
    classify: Callable[[WireResponse], ProviderError]
    on_retry: Callable[[ProviderError], None]


class ProviderTransport(Protocol):
    """Puts one request on the wire and reads its whole answer."""

    async def send(self, request: WireRequest, attempt: Attempt, /) -> WireResponse:
        """Return the provider's answer, whatever its status.

        Raises:
            ProviderUnreachableError: No connection was made; nothing was sent.
            ProviderTimeoutError: No whole answer in time; billed or not is then unknown.
            ConnectionLostError: The connection broke after sending.
            AnswerTruncatedError: The body ended before its announced end.
            MalformedAnswerError: The answer exceeds a bound or is compressed in a way that was not asked for.
            KeyRejectedError: The key holds characters that no header may hold.
            EgressForbiddenError: The URL, its address or a redirect leads where the Router must not go.
        """
        ...


class KeyVerdict(StrEnum):
    """What a test call of a key found."""

    VALID = "valid"
    REJECTED = "rejected"
    NO_CREDIT = "no_credit"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """The result of a test call, for KeyVault to act on."""

    request_id: str
    lease: Lease
    verdict: KeyVerdict
    explanation: str
    models: Sequence[str]
    operations: Sequence[Operation]


class KeyAuthority(Protocol):
    """Custody: who may use which key, now."""

    async def acquire(self, query: LeaseQuery, /) -> Lease | NoKey:
        """Return a lease of the best key, or why there is none.

        Raises:
            AgentNotFoundError: The agent is not bound, or is another owner's.
            ProviderKeyNotFoundError: The key to validate does not exist, or is another owner's.
            ProviderKeyRevokedError: The key to validate is revoked.
            KeyCorruptError: The key does not authenticate in the vault.
            RouterOverloadedError: KeyVault leases no more this minute.
            SuiteUnavailableError: KeyVault cannot be reached, or revocations cannot.
        """
        ...

    def ensure_usable(self, lease: Lease, /) -> None:
        """Check that nothing has ended the lease; to be asked right before the first byte goes upstream.

        Raises:
            LeaseEndedError: It was revoked, superseded, out of its time, or out of contact with KeyVault.
        """
        ...

    def report(self, outcome: Outcome, /) -> None:
        """Tell KeyVault how a call went, some time soon."""
        ...

    async def report_validation(self, report: ValidationReport, /) -> bytes:
        """Change the key's state by what a test call found; return the key afterwards, opaque to the use cases.

        Raises:
            ProviderKeyNotFoundError: The key is gone.
            ProviderKeyRevokedError: It was revoked meanwhile.
            SuiteUnavailableError: KeyVault cannot be reached.
        """
        ...


class DueKeys(Protocol):
    """Keys that are due for a test call, whoever asked for one last."""

    async def claim_due(self, keys_max: int, /) -> tuple[Sequence[DueKey], timedelta]:
        """Claim keys that nobody else tests meanwhile, and say when it is worth asking again.

        Raises:
            DomainError: KeyVault refused, or cannot be reached.
        """
        ...


class Admission(Protocol):
    """Holds on every limit, and their settlement."""

    async def reserve(self, reserve: Reserve, /) -> Grant | FinalOutcome:
        """Hold the worst case; or return the outcome of an operation that is closed.

        A caller that is cancelled meanwhile leaves no hold behind.

        Raises:
            CapReachedError: A hard limit is reached.
            KeyRequiredError: With payer PLATFORM: its policy does not pay for this.
            RequestIdReusedError: The request id was used with another body.
            InProgressError: Another Router holds this request id.
            CallClosedError: A call of this number is over; the operation must count on.
            AgentNotFoundError: Metering does not know the agent or its account.
            RouterOverloadedError: A backlog is at its bound.
            SuiteUnavailableError: Metering cannot be reached, or admits nothing now.
        """
        ...

    async def settle(self, charge: Charge, /) -> Settlement:
        """Put the truth in the place of the hold, and wait a little for it to be counted. Never fails."""
        ...

    def settle_later(self, charge: Charge, /) -> None:
        """Put the truth in the place of the hold without waiting. Never fails."""
        ...

    def release_later(self, release: Release, /) -> None:
        """Give a hold back without waiting. Never fails."""
        ...

    async def lookup(
        self, *, request_id: str, agent_id: str, account: Account | None, body_hash: bytes
    ) -> FinalOutcome | None:
        """Return the outcome of an operation, when it is closed.

        Raises:
            RequestIdReusedError: The request id was used with another body.
            CustodyLogRolledBackError: It is not closed, and nothing may begin.
            SuiteUnavailableError: Metering cannot be reached.
        """
        ...


class AnswerSeal(Protocol):
    """Encrypts answers that are kept for a replay, under a key that only Routers have."""

    def seal(self, answer: bytes, /, *, request_id: str, agent_id: str) -> bytes:
        """Return the answer encrypted and bound to its request and agent; empty when it is too large to keep."""
        ...

    def open(self, sealed: bytes, /, *, request_id: str, agent_id: str) -> bytes:
        """Return the answer.

        Raises:
            AnswerNotKeptError: It was sealed under a key that is gone, or for another request.
        """
        ...
