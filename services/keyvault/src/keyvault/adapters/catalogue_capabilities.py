"""What providers and models can do, from the suite's catalogue."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from catalogue.models import Declared
from catalogue.models import Operation as CatalogueOperation
from keyvault.domain.provider_keys import Operation, OperationRoute, ProviderKey
from keyvault.ports import Capabilities, ProviderTerms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from catalogue.book import Catalogue
    from keyvault.domain.leases import EmbeddingSpace

_ANSWERS_MAX: Final = 4096
_OPERATIONS: Final = {operation: CatalogueOperation(operation.name.lower()) for operation in Operation}


class CatalogueCapabilities(Capabilities):
    """The catalogue, asked in this service's words."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Ask `catalogue`."""
        self._catalogue = catalogue
        # Asked for every candidate of every lease; the catalogue does not change while a process lives.
        self._can_serve = functools.lru_cache(maxsize=_ANSWERS_MAX)(self._look_up)

    @override
    def provider(self, slug: str) -> ProviderTerms | None:
        found = self._catalogue.provider(slug)
        if found is None:
            return None
        return ProviderTerms(name=found.name, base_url=found.base_url or "", fixed_hosts=frozenset(found.fixed_hosts))

    @override
    def providers(self) -> Sequence[str]:
        return [provider.slug for provider in self._catalogue.providers]

    @override
    def foreign_vendor(self, provider: str, secret: bytes) -> str:
        shape = self._catalogue.foreign_shape(provider, secret)
        return "" if shape is None else shape.name

    @override
    def has_vendor_format(self, secret: bytes) -> bool:
        return self._catalogue.looks_like(secret) is not None

    @override
    def why_unable(self, provider: str, base_url: str, route: OperationRoute) -> str:
        if self._catalogue.provider(provider) is None:
            # The provider has a complaint of its own.
            return ""
        unsupported = self._catalogue.operation_supported(
            self._catalogue.vendor_of(provider, base_url), route.model, _OPERATIONS[route.operation], _declared(route)
        )
        return "" if unsupported is None else unsupported.message

    @override
    def can_serve(self, key: ProviderKey, operation: Operation, space: EmbeddingSpace | None) -> bool:
        return self._can_serve(key.provider, key.base_url, operation, key.route(operation), space)

    def _look_up(
        self,
        provider: str,
        base_url: str,
        operation: Operation,
        mapped: OperationRoute | None,
        space: EmbeddingSpace | None,
    ) -> bool:
        vendor = self._catalogue.vendor_of(provider, base_url)
        route = mapped
        if route is None:
            default = self._catalogue.default_model(vendor, _OPERATIONS[operation])
            if default is None:
                return False
            route = OperationRoute(operation=operation, model=default)
        if self.why_unable(provider, base_url, route):
            return False
        return space is None or self._serves_space(vendor, route, space)

    def _serves_space(self, vendor: str, route: OperationRoute, space: EmbeddingSpace) -> bool:
        model = self._catalogue.model(vendor, route.model, _declared(route))
        found = None if model is None else self._catalogue.embedding_space(model, space.dimensions)
        return found is not None and (found.maker, found.model) == (space.maker, space.model)


def _declared(route: OperationRoute) -> Declared | None:
    if not route.capabilities:
        return None
    is_embedding = "embedding" in route.capabilities
    return Declared(
        structured_output="structured_output" in route.capabilities,
        vision="vision" in route.capabilities,
        strong_reasoning="reasoning" in route.capabilities,
        context_tokens=route.context_window_tokens or None,
        embedding_dimensions=(route.dimensions,) if is_embedding and route.dimensions else (),
    )
