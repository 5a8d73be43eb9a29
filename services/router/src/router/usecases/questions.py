"""The questions that operations ask of providers: a chat completion held to a form, or vectors for texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from catalogue.book import Catalogue
from catalogue.models import Operation
from router.domain.codecs import CodecRegistry
from router.domain.completions import ChatCall, Completion
from router.domain.embeddings import EmbedCall, EmbeddingResult
from router.domain.operations import DIMENSIONS_DEFAULT
from router.domain.refusals import EmbeddingSpaceUnavailableError, ModelNotCapableError
from router.usecases.costs import Costs
from router.usecases.paid_calls import Question

if TYPE_CHECKING:
    from collections.abc import Callable

    from catalogue.models import EmbeddingFacts, EmbeddingSpace, Viability
    from router.domain.embeddings import EmbeddingPurpose
    from router.domain.errors import ProviderError
    from router.domain.receipts import PricedUsage
    from router.domain.reservations import Estimate
    from router.domain.routes import Route
    from router.domain.usage import Usage
    from router.domain.wire import WireRequest, WireResponse


@dataclass(frozen=True, slots=True)
class Vendors:
    """What is known of vendors: their forms, their models, their prices."""

    codecs: CodecRegistry
    catalogue: Catalogue
    costs: Costs


class ChatQuestion(Question[Completion]):
    """A chat completion, composed anew for what each model needs."""

    def __init__(self, operation: Operation, compose: Callable[[Viability], ChatCall], vendors: Vendors) -> None:
        """Ask what `compose` says, on whatever model serves `operation`."""
        self._operation = operation
        self._compose = compose
        self._vendors = vendors
        self._composed: tuple[Route, Viability, ChatCall] | None = None

    @property
    @override
    def operation(self) -> Operation:
        return self._operation

    @property
    @override
    def required_space(self) -> None:
        return None

    @override
    def build(self, route: Route, output_tokens: int | None, /) -> WireRequest:
        call = self._call(route)[1]
        if output_tokens is not None:
            call = replace(call, output_tokens_max=output_tokens)
        return self._vendors.codecs.chat(route).build_chat(call, route)

    @override
    def estimate(self, route: Route, request: WireRequest, /) -> Estimate:
        viability, call = self._call(route)
        return self._vendors.costs.estimate_chat(call, route, request, output_tokens_min=viability.output_tokens_min)

    @override
    def read(self, response: WireResponse, route: Route, /) -> tuple[Completion, PricedUsage | None]:
        completion = self._vendors.codecs.chat(route).parse_chat(response, route)
        return completion, self._vendors.costs.of_completion(completion, route)

    @override
    def price(self, usage: Usage, route: Route, /) -> PricedUsage | None:
        return self._vendors.costs.of_usage(usage, route)

    @override
    def classify(self, response: WireResponse, route: Route, /) -> ProviderError:
        return self._vendors.codecs.chat(route).classify(response, route)

    def _call(self, route: Route) -> tuple[Viability, ChatCall]:
        composed = self._composed
        if composed is None or composed[0] is not route:
            viability = self._vendors.catalogue.viability(route.model, self._operation)
            if viability is None:
                raise ModelNotCapableError(
                    "It is not known how much output this operation needs on this model. Map another model.",
                    provider=route.provider,
                    model=route.model.model_id,
                )
            call = self._compose(viability)
            ceiling = self._vendors.costs.ceiling(route)
            if ceiling is not None:
                call = replace(call, price_ceiling=ceiling)
            composed = self._composed = (route, viability, call)
        return composed[1], composed[2]


# Texts are cut into batches by their bytes, which no tokenizer exceeds on plain text.
_UNLIMITED: Final = 2**62


class EmbedQuestion(Question[EmbeddingResult]):
    """Vectors for as many of the texts as one call of the route takes."""

    def __init__(
        self, texts: tuple[str, ...], *, purpose: EmbeddingPurpose, space: EmbeddingSpace | None, vendors: Vendors
    ) -> None:
        """Ask for vectors in `space`, or else in that of the first route asked."""
        self.texts = texts
        self._purpose = purpose
        self._space = space
        self._vendors = vendors

    @property
    @override
    def operation(self) -> Operation:
        return Operation.EMBEDDING_GENERATION

    @property
    @override
    def required_space(self) -> EmbeddingSpace | None:
        return self._space

    def rest(self, count: int) -> EmbedQuestion:
        """Return the question for what is left after `count` texts, in the same space."""
        return EmbedQuestion(self.texts[count:], purpose=self._purpose, space=self._space, vendors=self._vendors)

    def space_served(self) -> EmbeddingSpace:
        """Return the space of the vectors, once a route has been asked."""
        if self._space is None:  # pragma: no cover (nothing is answered before a route is asked)
            raise AssertionError
        return self._space

    @override
    def build(self, route: Route, output_tokens: int | None, /) -> WireRequest:
        return self._vendors.codecs.embedding(route).build_embed(self._call(route), route)

    @override
    def estimate(self, route: Route, request: WireRequest, /) -> Estimate:
        return self._vendors.costs.estimate_embed(self._call(route), route, request)

    @override
    def read(self, response: WireResponse, route: Route, /) -> tuple[EmbeddingResult, PricedUsage | None]:
        result = self._vendors.codecs.embedding(route).parse_embed(response, self._call(route), route)
        return result, self._vendors.costs.of_embeddings(result, route)

    @override
    def price(self, usage: Usage, route: Route, /) -> PricedUsage | None:
        return self._vendors.costs.of_usage(usage, route)

    @override
    def classify(self, response: WireResponse, route: Route, /) -> ProviderError:
        return self._vendors.codecs.chat(route).classify(response, route)

    def _call(self, route: Route) -> EmbedCall:
        if self._space is None:
            # The first candidate's space holds for the whole call, also when another candidate answers.
            self._space = self._vendors.catalogue.embedding_space(route.model, DIMENSIONS_DEFAULT)
        facts = route.model.embedding
        if self._space is None or facts is None:
            raise EmbeddingSpaceUnavailableError(space=f"{route.model.model_id}@{DIMENSIONS_DEFAULT}")
        return EmbedCall(texts=self._batch(facts), dimensions=self._space.dimensions, purpose=self._purpose)

    def _batch(self, facts: EmbeddingFacts) -> tuple[str, ...]:
        room = facts.batch_tokens_max or _UNLIMITED
        count = 0
        for text in self.texts[: facts.inputs_max]:
            room -= len(text.encode())
            if room < 0 and count:
                break
            count += 1
        return self.texts[:count]
