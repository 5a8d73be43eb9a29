"""The reviewed catalogue: what providers and models can do, and what operations ask of them.

Light and pure: the data comes from the package's own files, and no provider is asked. What the catalogue does not know
is refused unless the owner has declared it.
"""

from __future__ import annotations

import functools
import re
import tomllib
from importlib import resources
from typing import Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from catalogue.models import (
    Declared,
    Dialect,
    EmbeddingFacts,
    EmbeddingSpace,
    ImageRule,
    KeyShape,
    Model,
    ModelKind,
    Operation,
    Overhead,
    Provider,
    Requirement,
    Strength,
    StructuredOutput,
    Unsupported,
    UnsupportedReason,
    Viability,
)

_SNAPSHOT_SUFFIX: Final = re.compile(r"(-\d{4}-\d{2}-\d{2}|-\d{8}|@\d{8}|-latest)$")
_KEY_BYTES_MAX: Final = 512
_OVERHEADS_KEPT_MAX: Final = 4_096
_T = TypeVar("_T")


class Catalogue:
    """Providers, models, operations and key shapes, looked up by name."""

    def __init__(
        self,
        *,
        providers: tuple[Provider, ...],
        models: tuple[Model, ...],
        requirements: dict[Operation, Requirement],
        shapes: tuple[KeyShape, ...] = (),
        overheads: tuple[Overhead, ...] = (),
        images: dict[str, ImageRule] | None = None,
    ) -> None:
        self._providers = {provider.slug: provider for provider in providers}
        self._models: dict[tuple[str, str], Model] = {}
        for model in models:
            for name in (model.model_id, *model.aliases):
                self._models[model.provider, name] = model
        self._requirements = requirements
        self._shapes = [(shape, re.compile(shape.pattern.encode())) for shape in _all_shapes(providers, shapes)]
        self._own_shapes = {
            provider.slug: [re.compile(key.pattern.encode()) for key in provider.key_patterns] for provider in providers
        }
        self._overheads = overheads
        # Asked for with every call, and the rows never change.
        self._overheads_of = functools.lru_cache(maxsize=_OVERHEADS_KEPT_MAX)(self._find_overheads)
        self._images = images or {}

    @property
    def providers(self) -> tuple[Provider, ...]:
        """Return all providers, in the catalogue's order."""
        return tuple(self._providers.values())

    def provider(self, slug: str) -> Provider | None:
        """Return the provider of that slug."""
        return self._providers.get(slug)

    def vendor_of(self, provider: str, base_url: str) -> str:
        """Return whose host a base URL is.

        An owner may give a known vendor's host as a compatible one (spec 8.6); then that vendor's models, prices and
        quirks apply. Any other host is the provider's own.
        """
        row = self._providers.get(provider)
        if row is None or not row.takes_any_model:
            return provider
        host = urlsplit(base_url).hostname or ""
        known = (other for other in self._providers.values() if other.dialect is row.dialect)
        return next((other.slug for other in known if host in other.fixed_hosts), provider)

    def models(self, provider: str) -> tuple[Model, ...]:
        """Return the reviewed models of a provider, each once."""
        return tuple({id(model): model for (slug, _), model in self._models.items() if slug == provider}.values())

    def requirement(self, operation: Operation) -> Requirement:
        """Return what an operation asks of a model."""
        return self._requirements[operation]

    def model(self, provider: str, model_id: str, declared: Declared | None = None) -> Model | None:
        """Return what is known of a model under exactly the id asked for.

        A reviewed row comes first; a dated snapshot of a reviewed model is that model. Otherwise what the owner
        declared is taken; without a declaration nothing is known and the answer is ``None``.
        """
        row = self._models.get((provider, model_id)) or self._models.get((provider, _SNAPSHOT_SUFFIX.sub("", model_id)))
        if row is not None:
            return row if row.model_id == model_id else msgspec.structs.replace(row, model_id=model_id)
        return None if declared is None else _declared_model(provider, model_id, declared)

    def dialect(self, provider: str, model: Model) -> Dialect:
        """Return how to speak to a model of a provider.

        Raises:
            KeyError: The provider is not in the catalogue.
        """
        return model.dialect or self._providers[provider].dialect

    def default_model(self, provider: str, operation: Operation) -> str | None:
        """Return the model that an operation takes when the mapping names none."""
        row = self._providers.get(provider)
        return None if row is None else row.default_models.get(operation)

    def operation_supported(
        self, provider: str, model_id: str, operation: Operation, declared: Declared | None = None
    ) -> Unsupported | None:
        """Return why a model cannot do an operation; ``None`` when it can."""
        if provider not in self._providers:
            known = ", ".join(self._providers)
            return _no(UnsupportedReason.PROVIDER_UNKNOWN, f"Provider {provider!r} is not known. Use one of: {known}.")
        model = self.model(provider, model_id, declared)
        if model is None:
            return _no(
                UnsupportedReason.MODEL_UNKNOWN,
                f"Model {model_id!r} of {provider} is not in the catalogue. Declare its capabilities in the mapping.",
            )
        return shortfall(model, self._requirements[operation], operation)

    def viability(self, model: Model, operation: Operation) -> Viability | None:
        """Return the least and the most output, and the effort, of an operation on a model."""
        needs = self._requirements[operation]
        usual = needs.thinking_viability if model.thinks else needs.viability
        found = model.viability.get(operation, usual)
        if found is None or model.output_tokens_max is None:
            return found
        return msgspec.structs.replace(
            found,
            output_tokens_max=min(found.output_tokens_max, model.output_tokens_max),
            effort=found.effort if found.effort in model.efforts else None,
        )

    def embedding_space(self, model: Model, dimensions: int) -> EmbeddingSpace | None:
        """Return the space of a model's vectors of a size; ``None`` when it cannot give that size."""
        facts = model.embedding
        if facts is None or dimensions not in facts.dimensions:
            return None
        return EmbeddingSpace(maker=facts.maker, model=facts.model, dimensions=dimensions)

    def embedding_spaces(self, provider: str) -> tuple[tuple[Model, EmbeddingSpace], ...]:
        """Return each reviewed embedding model of a provider with each space that it can give."""
        return tuple(
            (model, EmbeddingSpace(maker=model.embedding.maker, model=model.embedding.model, dimensions=dimensions))
            for model in self.models(provider)
            if model.embedding is not None
            for dimensions in model.embedding.dimensions
        )

    def looks_like(self, secret: bytes) -> KeyShape | None:
        """Return the vendor whose keys alone have this shape; ``None`` when several or none do."""
        if len(secret) > _KEY_BYTES_MAX:
            return None
        return next((shape for shape, pattern in self._shapes if pattern.fullmatch(secret)), None)

    def foreign_shape(self, provider: str, secret: bytes) -> KeyShape | None:
        """Return the other vendor that a key given for ``provider`` plainly belongs to.

        A shape that no vendor is known by is never foreign: vendors change the shape of their keys without notice. Nor
        is any shape for a provider without one, such as a compatible host, whose keys may look like anybody's.
        """
        own = self._own_shapes.get(provider, [])
        if not own or any(pattern.fullmatch(secret) for pattern in own):
            return None
        shape = self.looks_like(secret)
        return None if shape is None or shape.vendor == provider else shape

    def overheads(self, provider: str, model_id: str) -> Overhead:
        """Return the reviewed overhead of a model: the most specific row."""
        return self._overheads_of(provider, model_id)

    def _find_overheads(self, provider: str, model_id: str) -> Overhead:
        rows = [row for row in self._overheads if row.provider in (provider, "*") and _begins(model_id, row)]
        return max(rows, key=lambda row: (row.provider != "*", len(row.model_prefix)))

    def image_rule(self, name: str) -> ImageRule:
        """Return the rule that bounds an image's tokens; an unknown name gets the dearest."""
        return self._images.get(name) or self._images["unknown"]


def shortfall(model: Model, needs: Requirement, operation: Operation) -> Unsupported | None:
    """Return the first requirement that a model does not meet."""
    name = f"{model.model_id!r} of {model.provider}"
    title = operation.value.replace("_", " ")
    if model.kind != needs.kind:
        return _no(UnsupportedReason.WRONG_KIND, f"{name} is a model for {model.kind}; {title} needs {needs.kind}.")
    if needs.structured_output and model.structured_output is StructuredOutput.NONE:
        reason = UnsupportedReason.NO_STRUCTURED_OUTPUT
        return _no(reason, f"{name} cannot be held to JSON, which {title} needs. Map another model.")
    if needs.vision and not model.vision:
        return _no(UnsupportedReason.NO_VISION, f"{name} takes no images, which {title} needs. Map a vision model.")
    if needs.strong_reasoning and model.strength is not Strength.STRONG:
        reason = UnsupportedReason.WEAK_REASONING
        return _no(reason, f"{name} does not reason well enough for {title}. Map a stronger model.")
    return _size_shortfall(model, needs, name, title)


def _size_shortfall(model: Model, needs: Requirement, name: str, title: str) -> Unsupported | None:
    if (model.context_tokens or 0) < needs.context_tokens_min:
        return _no(
            UnsupportedReason.CONTEXT_TOO_SMALL,
            f"{name} has a context of {model.context_tokens or 'unknown'} tokens; {title} needs "
            f"{needs.context_tokens_min}. Map a larger model, or declare its context.",
        )
    wanted = needs.embedding_dimensions
    if wanted is not None and (model.embedding is None or wanted not in model.embedding.dimensions):
        return _no(
            UnsupportedReason.DIMENSIONS_UNAVAILABLE,
            f"{name} cannot give vectors of {wanted} dimensions, which {title} needs. Map another embedding model.",
        )
    return None


def _no(reason: UnsupportedReason, message: str) -> Unsupported:
    return Unsupported(reason=reason, message=message)


def _begins(model_id: str, row: Overhead) -> bool:
    return model_id.startswith(row.model_prefix)


def _declared_model(provider: str, model_id: str, declared: Declared) -> Model:
    """Return the row that an owner's declaration makes; what it leaves out is taken to be missing."""
    embedding = None
    if declared.embedding_dimensions:
        embedding = EmbeddingFacts(
            # Without a declared maker the space is named after the route, so that it can match no other.
            maker=declared.embedding_space_maker or provider,
            model=declared.embedding_space_model or model_id,
            dimensions=declared.embedding_dimensions,
        )
    return Model(
        provider=provider,
        model_id=model_id,
        kind=ModelKind.EMBEDDING if embedding else ModelKind.CHAT,
        context_tokens=declared.context_tokens,
        structured_output=StructuredOutput.JSON_SCHEMA if declared.structured_output else StructuredOutput.NONE,
        vision=declared.vision,
        strength=Strength.STRONG if declared.strong_reasoning else Strength.WEAK,
        embedding=embedding,
        is_reviewed=False,
    )


def _all_shapes(providers: tuple[Provider, ...], others: tuple[KeyShape, ...]) -> tuple[KeyShape, ...]:
    own = (
        KeyShape(vendor=provider.slug, name=provider.name, pattern=key.pattern)
        for provider in providers
        for key in provider.key_patterns
        if key.is_distinctive
    )
    return (*own, *others)


class _ProvidersFile(msgspec.Struct, forbid_unknown_fields=True):
    providers: tuple[Provider, ...]
    shapes: tuple[KeyShape, ...]


class _ModelsFile(msgspec.Struct, forbid_unknown_fields=True):
    models: tuple[Model, ...]


class _BoundsFile(msgspec.Struct, forbid_unknown_fields=True):
    overheads: tuple[Overhead, ...]
    images: dict[str, ImageRule]


@functools.cache
def load_catalogue() -> Catalogue:
    """Return the catalogue that ships with this package, read once."""
    data = resources.files("catalogue").joinpath("data")
    providers = _read(data.joinpath("providers.toml").read_text("utf-8"), _ProvidersFile)
    bounds = _read(data.joinpath("bounds.toml").read_text("utf-8"), _BoundsFile)
    models: list[Model] = []
    for file in sorted(data.joinpath("models").iterdir(), key=lambda file: file.name):
        models.extend(_read(file.read_text("utf-8"), _ModelsFile).models)
    return Catalogue(
        providers=providers.providers,
        models=tuple(models),
        requirements=_read(data.joinpath("operations.toml").read_text("utf-8"), dict[Operation, Requirement]),
        shapes=providers.shapes,
        overheads=bounds.overheads,
        images=bounds.images,
    )


def _read(text: str, form: type[_T]) -> _T:
    return msgspec.convert(tomllib.loads(text), form)
