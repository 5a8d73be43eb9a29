"""How a provider call can fail, in one vocabulary for all vendors.

Each class says what the failure means for the call (worth repeating?), for the money (may it have been billed?) and for
the key (does its state change?). Facts hold names from our own tables, never a vendor's text: vendors echo prompts and
keys in their messages.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from servicekit.errors import DomainError

if TYPE_CHECKING:
    from datetime import timedelta

    from router.domain.usage import Usage


class KeyState(StrEnum):
    """The state into which a failure puts the provider key."""

    INVALID = "invalid"
    NO_CREDIT = "no_credit"


class ProviderError(DomainError):
    """A provider call failed.

    Attributes:
        rule: The row of the vendor's table that recognised it, for logs and metrics.
        retry_after: The vendor's wish, when it gave one.
        retryable: Whether the same call may succeed when repeated on the same route.
        may_have_been_billed: Whether the vendor may charge for it, so that its hold must not be released.
        usage: What had been consumed when it failed, where known.
    """

    key_state: ClassVar[KeyState | None] = None
    """The key's new state; ``None`` leaves it alone."""

    cools_key_down: ClassVar[bool] = False
    """Whether the key should rest until ``retry_after`` has passed."""

    retryable_by_default: ClassVar[bool] = False
    billed_by_default: ClassVar[bool] = False
    summary: ClassVar[str] = "The provider call failed."

    def __init__(
        self,
        *,
        provider: str,
        rule: str,
        status: int = 0,
        retry_after: timedelta | None = None,
        retryable: bool | None = None,
        may_have_been_billed: bool | None = None,
    ) -> None:
        """Make the error; unset answers are those of the class."""
        super().__init__(self.summary, provider=provider, rule=rule, status=status)
        self.rule = rule
        self.retry_after = retry_after
        self.retryable = self.retryable_by_default if retryable is None else retryable
        self.may_have_been_billed = self.billed_by_default if may_have_been_billed is None else may_have_been_billed
        self.usage: Usage | None = None


class KeyRejectedError(ProviderError):
    """The provider does not accept the key: wrong, revoked, expired or disabled."""

    key_state = KeyState.INVALID
    summary = "The provider rejected the key. Replace the key, or create a new one at the provider."


class NoCreditError(ProviderError):
    """The key's account at the provider has no credit, or has met its own spending limit there."""

    key_state = KeyState.NO_CREDIT
    summary = "The provider reports no credit for this key. Add credit or raise the limit at the provider."


class ThrottledError(ProviderError):
    """The provider limits the key's rate; it passes within minutes."""

    cools_key_down = True
    retryable_by_default = True
    summary = "The provider throttles this key. Try again after the time given."


class DailyQuotaError(ProviderError):
    """The key has used up a quota that is counted by the day or longer."""

    cools_key_down = True
    summary = "The key's daily quota at the provider is used up. Wait for its reset, or raise it at the provider."


class ContentRefusedError(ProviderError):
    """The provider's moderation refused the request's content."""

    summary = "The provider refused the content. It is held for the platform's own review."


class BadRequestError(ProviderError):
    """The provider does not accept the request; repeating it cannot help."""

    summary = "The provider did not accept the request for this model."


class GenerationRejectedError(BadRequestError):
    """The model wrote something that the provider's own check refused (tool arguments, JSON); another try may pass."""

    retryable_by_default = True
    billed_by_default = True
    summary = "The model's output failed the provider's own check."


class ContextExceededError(BadRequestError):
    """The request is larger than the model's context window or the provider's size limit."""

    summary = "The request is larger than the model takes. Shorten it, or map a model with a larger context window."


class ModelGoneError(ProviderError):
    """The model does not exist, was retired, or is not open to this key."""

    summary = "The provider does not offer this model to this key. Map the operation to another model."


class PermissionRefusedError(ProviderError):
    """The key is valid but may not do this: region, organization policy, a scope left out at its creation."""

    summary = "The provider does not permit this key to make this call. Check the key's permissions at the provider."


class ProviderOverloadedError(ProviderError):
    """The provider is short of capacity for everybody."""

    retryable_by_default = True
    summary = "The provider is overloaded. Try again after the time given."


class ProviderUnavailableError(ProviderError):
    """The provider failed for a reason of its own."""

    retryable_by_default = True
    summary = "The provider failed. Try again later."


class MalformedAnswerError(ProviderError):
    """The provider answered success in a form that its own contract does not allow."""

    retryable_by_default = True
    billed_by_default = True
    summary = "The provider's answer could not be read."


class AnswerTruncatedError(ProviderError):
    """The answer ended before its own end mark."""

    retryable_by_default = True
    billed_by_default = True
    summary = "The provider's answer was cut off."


class ProviderUnreachableError(ProviderError):
    """No connection was made, so that the request was never sent."""

    retryable_by_default = True
    summary = "The provider could not be reached."


class ProviderTimeoutError(ProviderError):
    """The provider did not answer in time after the request had been sent."""

    retryable_by_default = True
    billed_by_default = True
    summary = "The provider did not answer in time."


class ConnectionLostError(ProviderError):
    """The connection broke after the request had been sent."""

    retryable_by_default = True
    billed_by_default = True
    summary = "The connection to the provider broke before its answer was complete."


class EmbeddingsUnsupportedError(ProviderError):
    """The provider has no embedding endpoint."""

    summary = "This provider offers no embeddings. Add a key of a provider that does."
