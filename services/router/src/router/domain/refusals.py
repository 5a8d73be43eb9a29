"""What the Router itself refuses or cannot do; failures of a provider's call are in ``errors``."""

from servicekit.errors import DomainError


class EgressForbiddenError(DomainError):
    """A provider's address leads where the Router must not go; nothing was sent there."""

    def __init__(self, message: str, /, *, rule: str) -> None:
        """Name the broken rule; the address itself stays out, because it may carry what an owner pasted."""
        super().__init__(message, rule=rule)
        self.rule = rule
