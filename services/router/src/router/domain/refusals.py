"""What the Router itself refuses or cannot do, and how a failed provider call reads to its caller.

A provider's failure (``router.domain.errors``) says what happened to one attempt; what is here says what became of the
operation. Whatever it is, the content is held.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar, Final

from router.domain import errors
from servicekit.errors import DomainError, QuotaViolation

if TYPE_CHECKING:
    from router.domain.leases import PlatformCause
    from router.domain.receipts import FailureReport


class RouterError(DomainError):
    """An operation was refused or failed.

    Attributes:
        retryable: Whether the same request id may succeed later.
        report: What had happened to money and attempts by then; ``None`` when nothing had begun.
    """

    retryable: ClassVar[bool] = False
    report: FailureReport | None = None


class RequestIdReusedError(RouterError):
    """The request id was used with another body."""

    def __init__(self) -> None:
        """Say what to do."""
        super().__init__("This request_id was used with another body. Take a new request_id.")


class InProgressError(RouterError):
    """Another Router works on the same request id."""

    retryable = True

    def __init__(self, *, retry_after: timedelta) -> None:
        """Say when to ask again."""
        super().__init__("The same request_id is being worked on. Ask again after the time given.")
        self.retry_after = retry_after


class AgentNotFoundError(RouterError):
    """The agent is not registered, or is another owner's."""

    def __init__(self, *, agent_id: str) -> None:
        """Name the agent."""
        super().__init__("The agent is not registered, or is another owner's. Register it first.", agent_id=agent_id)


class ProviderKeyNotFoundError(RouterError):
    """There is no such key, or it is another owner's."""

    def __init__(self, *, provider_key_id: str) -> None:
        """Name the key."""
        super().__init__("There is no such key, or it is another owner's.", provider_key_id=provider_key_id)


class ProviderKeyRevokedError(RouterError):
    """The key is revoked."""

    def __init__(self, *, provider_key_id: str) -> None:
        """Name the key."""
        super().__init__("The key is revoked. Add a new key.", provider_key_id=provider_key_id)


class HaltedError(RouterError):
    """An emergency stop covers the operation. Nothing else is tried, and nobody else pays."""

    def __init__(self, *, halt_scope: str = "") -> None:
        """Name what is halted."""
        super().__init__(
            "An emergency stop covers this operation. Hold the content until it is resumed.", halt_scope=halt_scope
        )


class KeyRequiredError(RouterError):
    """There is no usable key and the platform does not pay."""

    def __init__(self, *, cause: PlatformCause, retry_after: timedelta | None = None) -> None:
        """Name why there is none."""
        super().__init__(
            "There is no usable key for this operation and the platform does not pay for it. Add a provider key.",
            cause=cause.name,
        )
        self.retry_after = retry_after


class ProviderKeyRejectedError(RouterError):
    """The provider rejects the owner's key."""

    def __init__(self, *, provider_key_id: str, provider: str) -> None:
        """Name key and provider."""
        super().__init__(errors.KeyRejectedError.summary, provider_key_id=provider_key_id, provider=provider)


class ProviderNoCreditError(RouterError):
    """The key's account at the provider has no credit."""

    def __init__(self, *, provider_key_id: str, provider: str) -> None:
        """Name key and provider."""
        super().__init__(errors.NoCreditError.summary, provider_key_id=provider_key_id, provider=provider)


class CapReachedError(RouterError):
    """A cap of the account is reached."""

    def __init__(self, message: str, /, *, quota: tuple[QuotaViolation, ...] = (), **facts: str | int) -> None:
        """Take over what Metering says of the limit; there is never a delay to retry after."""
        super().__init__(message, **facts)
        self.quota = quota


class ProviderRateLimitedError(RouterError):
    """The provider throttles the key."""

    retryable = True

    def __init__(self, *, provider: str, retry_after: timedelta) -> None:
        """Name the provider and when to come back."""
        super().__init__(errors.ThrottledError.summary, provider=provider)
        self.retry_after = retry_after


class RouterOverloadedError(RouterError):
    """A queue of the suite is full."""

    retryable = True

    def __init__(self, *, retry_after: timedelta = timedelta(seconds=1)) -> None:
        """Say when to come back."""
        super().__init__("The suite has as much work as it may hold. Try again after the time given.")
        self.retry_after = retry_after


class ContentHeldError(RouterError):
    """The provider refused the content, or its safety filter blocked it."""

    def __init__(self, *, provider: str) -> None:
        """Name the provider."""
        super().__init__(errors.ContentRefusedError.summary, provider=provider)


class ProviderRequestRefusedError(RouterError):
    """The provider does not accept the request for this model."""

    def __init__(self, message: str, /, *, provider: str, model: str) -> None:
        """Name provider and model."""
        super().__init__(message, provider=provider, model=model)


class ModelUnavailableError(RouterError):
    """The model is gone, or the key cannot use it."""

    def __init__(self, message: str, /, *, provider: str, model: str) -> None:
        """Name provider and model."""
        super().__init__(message, provider=provider, model=model)


class ModelNotCapableError(RouterError):
    """The mapped model cannot do the operation."""

    def __init__(self, message: str, /, *, provider: str, model: str) -> None:
        """Name provider and model."""
        super().__init__(message, provider=provider, model=model)


class EmbeddingSpaceUnavailableError(RouterError):
    """No route gives the embedding space asked for, or the one that the call began with."""

    def __init__(self, *, space: str) -> None:
        """Name the space."""
        super().__init__(
            f"No usable key gives vectors of the space {space}. Add a key that does, or ask for another space.",
            space=space,
        )


class CustodyLogRolledBackError(RouterError):
    """KeyVault's audit log is not the one that was witnessed, so that keys which were revoked may be in force again."""

    def __init__(self) -> None:
        """Say that only an operator can help; no key and no payer makes a difference."""
        super().__init__(
            "The vault's audit log was rolled back. Nothing is admitted until an operator has accepted it: hold the "
            "content."
        )


class AnswerNotKeptError(RouterError):
    """The operation was done and paid, and its answer is not kept."""

    def __init__(self) -> None:
        """Say how to buy it again."""
        super().__init__(
            "The operation was done and paid before; its answer is not kept. To buy it again, take a new request_id "
            "and name this one in supersedes_request_id."
        )


class AnswerMalformedError(RouterError):
    """The model's answer did not fit the schema, also after one repair."""

    retryable = True

    def __init__(self, *, provider: str, model: str) -> None:
        """Name provider and model."""
        super().__init__(
            "The model's answer could not be used. Try again, or map the operation to a stronger model.",
            provider=provider,
            model=model,
        )


class ProvidersExhaustedError(RouterError):
    """Every candidate failed for reasons of the providers."""

    retryable = True

    def __init__(self, *, provider: str, retry_after: timedelta | None = None) -> None:
        """Name the last provider tried."""
        super().__init__("No provider answered. Hold the content and try again later.", provider=provider)
        self.retry_after = retry_after


class SuiteUnavailableError(RouterError):
    """A service of the suite cannot be reached."""

    retryable = True

    def __init__(self, *, service: str, retry_after: timedelta | None = None) -> None:
        """Name the service."""
        super().__init__("A service of the suite is away. Hold the content and try again.", service=service)
        self.retry_after = retry_after


class PriceUnknownError(RouterError):
    """The price of the model is not known, so that no cap could hold."""

    def __init__(self, *, provider: str, model: str) -> None:
        """Name provider and model."""
        super().__init__(
            "The price of this model is not known, so that no cap could hold. Map another model, or ask the operator "
            "to set its price.",
            provider=provider,
            model=model,
        )


class EgressForbiddenError(RouterError):
    """A provider's address leads where the Router must not go; nothing was sent there."""

    def __init__(self, message: str, /, *, rule: str, host: str = "") -> None:
        """Name the broken rule, and the host once it is known to be no more than a name."""
        super().__init__(message, rule=rule, **({"host": host} if host else {}))
        self.rule = rule


class KeyCorruptError(RouterError):
    """A key does not authenticate in the vault."""

    def __init__(self, *, provider_key_id: str = "") -> None:
        """Name the key, where KeyVault does."""
        super().__init__(
            "The key does not authenticate in the vault. Report it to the operator and replace the key.",
            provider_key_id=provider_key_id,
        )


class CallClosedError(RouterError):
    """A call of this number was made for the operation before, by this Router, and is over.

    A caller came again under its request id. Use cases go on counting; a caller sees it only when there is no number
    left.
    """

    retryable = True

    def __init__(self) -> None:
        """Say that the operation has begun anew too often."""
        super().__init__("This operation was begun too often. Take a new request id.")


class LeaseEndedError(RouterError):
    """A lease ended (revoked, superseded, out of time or of contact) before anything was sent on it.

    Use cases take another lease; a caller sees it only when there was no time left to.
    """

    retryable = True

    def __init__(self, *, rule: str) -> None:
        """Name what ended it."""
        super().__init__("The right to use the key ended before the call began. Try again.", rule=rule)
        self.rule = rule


_RETRY_AFTER_THROTTLED: Final = timedelta(seconds=10)
_RETRY_AFTER_QUOTA: Final = timedelta(hours=1)
_Refuse = Callable[[errors.ProviderError, str, str], RouterError]


def _throttled(error: errors.ProviderError, default: timedelta) -> RouterError:
    provider = str(error.facts["provider"])
    return ProviderRateLimitedError(provider=provider, retry_after=error.retry_after or default)


def _provider(error: errors.ProviderError) -> str:
    return str(error.facts["provider"])


# The first class that matches decides, so that subclasses stand before their bases.
_REFUSALS: Final[tuple[tuple[type[errors.ProviderError], _Refuse], ...]] = (
    (errors.KeyRejectedError, lambda e, key, _: ProviderKeyRejectedError(provider_key_id=key, provider=_provider(e))),
    (errors.NoCreditError, lambda e, key, _: ProviderNoCreditError(provider_key_id=key, provider=_provider(e))),
    (errors.ThrottledError, lambda e, _key, _model: _throttled(e, _RETRY_AFTER_THROTTLED)),
    (errors.DailyQuotaError, lambda e, _key, _model: _throttled(e, _RETRY_AFTER_QUOTA)),
    (errors.ContentRefusedError, lambda e, _key, _model: ContentHeldError(provider=_provider(e))),
    (
        errors.GenerationRejectedError,
        lambda e, _, model: AnswerMalformedError(provider=_provider(e), model=model),
    ),
    (
        errors.BadRequestError,
        lambda e, _, model: ProviderRequestRefusedError(e.message, provider=_provider(e), model=model),
    ),
    (errors.ModelGoneError, lambda e, _, model: ModelUnavailableError(e.message, provider=_provider(e), model=model)),
    (
        errors.PermissionRefusedError,
        lambda e, _, model: ModelUnavailableError(e.message, provider=_provider(e), model=model),
    ),
    (
        errors.EmbeddingsUnsupportedError,
        lambda e, _, model: ModelNotCapableError(e.message, provider=_provider(e), model=model),
    ),
    (
        errors.ProviderError,
        lambda e, _key, _model: ProvidersExhaustedError(provider=_provider(e), retry_after=e.retry_after),
    ),
)


def refusal_of(error: errors.ProviderError, *, key_id: str, model: str) -> RouterError:
    """Return what a provider's failure means for the operation, when no other candidate is left."""
    for kind, refuse in _REFUSALS:
        if isinstance(error, kind):
            return refuse(error, key_id, model)
    raise AssertionError  # pragma: no cover (the last row is the base of all)
