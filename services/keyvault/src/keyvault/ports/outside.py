"""What the catalogue knows, and what an operator must hear of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyvault.domain.leases import EmbeddingSpace
    from keyvault.domain.provider_keys import Operation, OperationRoute, ProviderKey


@dataclass(frozen=True, slots=True)
class ProviderTerms:
    """What the catalogue says of a provider: its own base URL, and the only hosts of it, if those are fixed."""

    name: str
    base_url: str
    fixed_hosts: frozenset[str]


class Capabilities(Protocol):
    """What providers and models can do, as far as the catalogue or the owner's declaration says."""

    def provider(self, slug: str) -> ProviderTerms | None:
        """Return the terms of a provider, or None when the catalogue does not have it."""
        ...

    def providers(self) -> Sequence[str]:
        """Return the slugs of all providers."""
        ...

    def foreign_vendor(self, provider: str, secret: bytes) -> str:
        """Return the name of the other vendor whose key this plainly is, or nothing."""
        ...

    def has_vendor_format(self, secret: bytes) -> bool:
        """Return whether the secret has the format of some vendor's keys."""
        ...

    def why_unable(self, provider: str, base_url: str, route: OperationRoute) -> str:
        """Return why the route's model cannot do its operation, for its owner; nothing when it can.

        A known vendor's host tells which models there are, also where it is named as a compatible endpoint.
        """
        ...

    def can_serve(self, key: ProviderKey, operation: Operation, space: EmbeddingSpace | None) -> bool:
        """Return whether the key's provider and mapping can do the operation, in the space if one is required."""
        ...


class Alarms(Protocol):
    """What an operator must hear of."""

    def corruption_found(self, row_id: str, what: str) -> None:
        """Say that the stored bytes of a key or an agent fail authentication."""
        ...

    def watch_failing(self, what: str, facts: Mapping[str, str | int]) -> None:
        """Say that changes cannot be read, so that watchers get no echo: said once, until it has worked again."""
        ...

    def lease_bound_reached(self, caller: str) -> None:
        """Say that a caller leases more distinct keys than one may."""
        ...
