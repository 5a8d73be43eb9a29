"""What calls may cost and did cost, on the price book; prices are looked up once a minute, not once a call."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from router.domain.bounds import chat_bound, embed_bound
from router.domain.pricing import PriceUnknownError as NoPriceError
from router.domain.pricing import UnitPrices as UnitPricesOfTokens
from router.domain.pricing import ceiling, chooses_upstreams, cost_of_call
from router.domain.receipts import CostSource, PricedModel, PricedUsage, UnitPrices, UsageSource
from router.domain.refusals import PriceUnknownError
from router.domain.reservations import Estimate
from router.domain.usage import UsageFlag

if TYPE_CHECKING:
    from catalogue.book import Catalogue
    from router.domain.bounds import TokenBound
    from router.domain.completions import ChatCall, Completion, PriceCeiling
    from router.domain.embeddings import EmbedCall, EmbeddingResult
    from router.domain.pricing import ModelPrice, PriceBook
    from router.domain.routes import Route
    from router.domain.usage import Usage
    from router.domain.wire import WireRequest
    from servicekit.clock import Clock

_PRICES_KEPT: Final = timedelta(minutes=1)
_PRICES_KEPT_MAX: Final = 4_096
_MTOK: Final = 1_000_000
_SELF_HOSTED: Final = frozenset({"ollama", "vllm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What a vendor reports beside its counts: how it served the call, and perhaps the cost itself."""

    tier: str | None = None
    region: str | None = None
    cost_nano_usd: int | None = None


_NOTHING: Final = Reported()
_PriceKey = tuple[str, str, str, str, str | None, str | None]


class Costs:
    """Bounds and prices of calls."""

    def __init__(self, *, prices: PriceBook, catalogue: Catalogue, clock: Clock) -> None:
        """Price by `prices`, bound by the overheads in `catalogue`."""
        self._prices = prices
        self._catalogue = catalogue
        self._clock = clock
        self._kept: dict[_PriceKey, ModelPrice] = {}
        self._dearest_kept: dict[tuple[str, str, str], tuple[ModelPrice, UnitPricesOfTokens]] = {}
        self._kept_until = float("-inf")

    def estimate_chat(self, call: ChatCall, route: Route, request: WireRequest, *, output_tokens_min: int) -> Estimate:
        """Return the most that a chat call can use, with the least and the most output that make sense.

        Raises:
            PriceUnknownError: No price is known.
        """
        bound = chat_bound(call, len(request.body), route, self._catalogue)
        return self._estimate(bound, route, output_tokens_min=min(output_tokens_min, bound.output_tokens))

    def estimate_embed(self, call: EmbedCall, route: Route, request: WireRequest) -> Estimate:
        """Return the most that an embedding call can use.

        Raises:
            PriceUnknownError: No price is known.
        """
        return self._estimate(embed_bound(call, len(request.body), route, self._catalogue), route, output_tokens_min=0)

    def ceiling(self, route: Route) -> PriceCeiling | None:
        """Return the price that the request must hold its vendor to; ``None`` where the vendor runs it itself.

        Raises:
            PriceUnknownError: No price is known.
        """
        return ceiling(self._dearest(route)) if chooses_upstreams(route) else None

    def of_completion(self, completion: Completion, route: Route) -> PricedUsage | None:
        """Return what a completion consumed and cost; ``None`` when the vendor does not say."""
        reported = Reported(
            tier=completion.tier, region=completion.region, cost_nano_usd=completion.provider_cost_nano_usd
        )
        return self.of_usage(completion.usage, route, reported)

    def of_embeddings(self, result: EmbeddingResult, route: Route) -> PricedUsage | None:
        """Return what embeddings consumed and cost; ``None`` when the vendor does not say."""
        return self.of_usage(result.usage, route, Reported(cost_nano_usd=result.provider_cost_nano_usd))

    def of_usage(self, usage: Usage, route: Route, reported: Reported = _NOTHING) -> PricedUsage | None:
        """Return a usage with its cost; ``None`` when nothing was reported, which is never the same as zero."""
        if usage.is_missing:
            return None
        prices = {part.model: self._price(route, part.model, reported) for part in usage.parts}
        cost = cost_of_call(usage, reported.cost_nano_usd, prices, self._prices.version)
        return PricedUsage(
            models=_priced_models(usage, route, prices, reported, cost.nano_usd),
            source=_source(usage),
            cost_nano_usd=cost.nano_usd,
            cost_source=_cost_source(route, is_reported=cost.is_reported),
            price_version=cost.price_version,
            is_clamped=UsageFlag.CLAMPED in usage.flags,
        )

    def _estimate(self, bound: TokenBound, route: Route, *, output_tokens_min: int) -> Estimate:
        prices = self._dearest_units(route)
        return Estimate(
            input_tokens=bound.input_tokens,
            fixed_cost_nano_usd=-(-bound.input_tokens * prices.dearest_input // _MTOK) + prices.request,
            output_nano_usd_per_mtok=prices.dearest_output,
            output_tokens_min=output_tokens_min,
            output_tokens_max=bound.output_tokens,
        )

    def _dearest_units(self, route: Route) -> UnitPricesOfTokens:
        key = (route.provider, route.base_url, route.model.model_id)
        price = self._dearest(route)
        found = self._dearest_kept.get(key)
        if found is None or found[0] is not price:
            found = self._dearest_kept[key] = (price, price.dearest)
        return found[1]

    def _dearest(self, route: Route) -> ModelPrice:
        key = (route.provider, route.base_url, route.model.model_id, "", None, None)
        found = self._current().get(key)
        if found is None:
            try:
                found = self._prices.dearest(route, now=self._clock.now())
            except NoPriceError:
                raise PriceUnknownError(provider=route.provider, model=route.model.model_id) from None
            self._kept[key] = found
        return found

    def _price(self, route: Route, model: str, reported: Reported) -> ModelPrice:
        key = (route.provider, route.base_url, route.model.model_id, model, reported.tier, reported.region)
        found = self._current().get(key)
        if found is None:
            try:
                found = self._prices.price(
                    route, model, now=self._clock.now(), tier=reported.tier, region=reported.region
                )
            except NoPriceError:
                # Another model answered than was asked, and nobody knows its price: what was reserved stands.
                found = self._dearest(route)
            self._kept[key] = found
        return found

    def _current(self) -> dict[_PriceKey, ModelPrice]:
        now = self._clock.monotonic()
        if now >= self._kept_until or len(self._kept) >= _PRICES_KEPT_MAX:
            # Prices change by the hour at some vendors, never within a call.
            self._kept.clear()
            self._dearest_kept.clear()
            self._kept_until = now + _PRICES_KEPT.total_seconds()
        return self._kept


def _priced_models(
    usage: Usage, route: Route, prices: dict[str, ModelPrice], reported: Reported, cost: int
) -> tuple[PricedModel, ...]:
    """Return each model's part; the first one carries what rounding and pieces add."""
    models: list[PricedModel] = []
    is_single = len(usage.parts) == 1
    left = cost
    for part in reversed(usage.parts):
        is_first = part is usage.parts[0]
        unit = prices[part.model].prices_at(part.counts.input_tokens)
        own = left if is_first else min(left, unit.cost(part.counts) // _MTOK)
        left -= own
        models.append(
            PricedModel(
                provider=route.provider,
                model=part.model,
                tier=reported.tier or "",
                processed=usage.processed if is_single else part.counts,
                billable=part.counts,
                cost_nano_usd=own,
                prices=None
                if reported.cost_nano_usd is not None
                else UnitPrices(
                    input_nano_usd_per_mtok=unit.input_tokens,
                    output_nano_usd_per_mtok=unit.output_tokens,
                    cached_input_nano_usd_per_mtok=unit.cache_read_tokens,
                    cache_write_5m_nano_usd_per_mtok=unit.cache_write_5m_tokens,
                    cache_write_1h_nano_usd_per_mtok=unit.cache_write_1h_tokens,
                ),
            )
        )
    return tuple(reversed(models))


def _source(usage: Usage) -> UsageSource:
    if UsageFlag.ESTIMATED in usage.flags:
        return UsageSource.ESTIMATED
    return UsageSource.COUNTED if UsageFlag.PARTIAL in usage.flags else UsageSource.REPORTED


def _cost_source(route: Route, *, is_reported: bool) -> CostSource:
    if route.vendor in _SELF_HOSTED:
        return CostSource.SELF_HOSTED
    return CostSource.PROVIDER if is_reported else CostSource.CATALOGUE
