"""What the Router needs from the world: providers, custody, admission, kept answers. Owned by the use cases."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

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
    """

    provider: str
    secret: Secret | None
    deadline: float
    before_first_byte: Callable[[], None]


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
