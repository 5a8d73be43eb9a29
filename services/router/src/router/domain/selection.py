"""Chooses the model for an operation on a key: the key's mapping, else the catalogue's default; then checks it."""

import functools
from typing import Final

from catalogue.book import Catalogue
from catalogue.models import Declared, EmbeddingSpace, Model, Operation
from router.domain.leases import Lease, MappedModel
from router.domain.operations import DIMENSIONS_DEFAULT
from router.domain.refusals import EmbeddingSpaceUnavailableError, ModelNotCapableError
from router.domain.routes import Route

# Routes are a pure function of a few names, and most calls repeat one of the last few thousand combinations.
_ROUTES_KEPT_MAX: Final = 8192


class RouteSelection:
    """Finds the route of a lease for an operation."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Select by what `catalogue` knows."""
        self._catalogue = catalogue
        self._found = functools.lru_cache(maxsize=_ROUTES_KEPT_MAX)(self._find)

    def find(self, lease: Lease, operation: Operation, space: EmbeddingSpace | None = None) -> Route:
        """Return the route that the lease's key gives the operation.

        Raises:
            ModelNotCapableError: No model is mapped or known, or it cannot do the operation.
            EmbeddingSpaceUnavailableError: The model does not serve the required space.
        """
        return self._found(lease.provider, lease.base_url, operation, lease.mapping.get(operation), space)

    def bare(self, lease: Lease) -> Route:
        """Return a route without a useful model, for calls that name none, such as a listing of models.

        Raises:
            ModelNotCapableError: The provider is not in the catalogue.
        """
        provider = self._catalogue.provider(lease.provider)
        if provider is None:
            message = f"Provider {lease.provider!r} is not known. Use one of the catalogue's."
            raise ModelNotCapableError(message, provider=lease.provider, model="")
        model = Model(provider=lease.provider, model_id="", is_reviewed=False)
        return Route(provider=lease.provider, dialect=provider.dialect, base_url=lease.base_url, model=model)

    def _find(
        self,
        provider: str,
        base_url: str,
        operation: Operation,
        mapped: MappedModel | None,
        space: EmbeddingSpace | None,
    ) -> Route:
        vendor = self._catalogue.vendor_of(provider, base_url)
        model = self._model(vendor, operation, mapped)
        if operation is Operation.EMBEDDING_GENERATION:
            self._check_space(model, space)
        return Route(
            provider=provider,
            dialect=self._catalogue.dialect(vendor, model),
            base_url=base_url,
            model=model,
            vendor=vendor,
            tier=mapped.tier or None if mapped else None,
            allowed_features=mapped.features if mapped else frozenset(),
        )

    def _model(self, provider: str, operation: Operation, mapped: MappedModel | None) -> Model:
        model_id = mapped.model if mapped else self._catalogue.default_model(provider, operation)
        if model_id is None:
            raise ModelNotCapableError(
                f"The key maps no model for {operation.value.replace('_', ' ')} and {provider} has no default for it. "
                "Map a model.",
                provider=provider,
                model="",
            )
        declared = declared_of(mapped) if mapped else None
        unsupported = self._catalogue.operation_supported(provider, model_id, operation, declared)
        model = self._catalogue.model(provider, model_id, declared)
        if unsupported is not None or model is None:
            message = unsupported.message if unsupported else f"Model {model_id!r} is not known."
            raise ModelNotCapableError(message, provider=provider, model=model_id)
        return model

    def _check_space(self, model: Model, space: EmbeddingSpace | None) -> None:
        dimensions = space.dimensions if space else DIMENSIONS_DEFAULT
        served = self._catalogue.embedding_space(model, dimensions)
        if space is not None and served != space:
            raise EmbeddingSpaceUnavailableError(space=space.name)


def declared_of(mapped: MappedModel) -> Declared:
    """Return what the owner declares of a mapped model, in the catalogue's words."""
    return Declared(
        structured_output="structured_output" in mapped.capabilities,
        vision="vision" in mapped.capabilities,
        strong_reasoning="reasoning" in mapped.capabilities,
        context_tokens=mapped.context_tokens or None,
        embedding_dimensions=(mapped.dimensions,) if "embedding" in mapped.capabilities and mapped.dimensions else (),
    )
