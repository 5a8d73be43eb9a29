"""A route: which model of which provider, spoken to in which dialect, with what it can do."""

from __future__ import annotations

from dataclasses import dataclass, field

from catalogue.models import Dialect, Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A provider, a model and how to speak to it; the key travels beside it, never in it.

    Attributes:
        provider: The provider's slug.
        dialect: The form of its requests and answers.
        base_url: From the sealed lease, without a trailing slash.
        model: What is known of the model: reviewed by the catalogue, or declared by the owner.
        tier: The owner's mapped service tier; ``None`` asks for the vendor's standard one.
        vendor: Whose host this is: another slug than ``provider`` where a compatible base URL is a known vendor's.
        allowed_features: What the mapping allows beyond the plain call, such as vendor-run tools.
    """

    provider: str
    dialect: Dialect
    base_url: str
    model: Model
    tier: str | None = None
    vendor: str = ""
    allowed_features: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        """Take the provider as the vendor where none is named."""
        if not self.vendor:
            object.__setattr__(self, "vendor", self.provider)

    def url(self, path: str) -> str:
        """Return the absolute URL of a path that begins with a slash."""
        return f"{self.base_url.rstrip('/')}{path}"
