"""Prices from the ``genai-prices`` package, as shipped: nothing is fetched. The operator's own prices come first.

Where the package knows several prices for a model (tiers, times of day, regions) a settlement takes the one that was
reported, and a reserve the highest of all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import genai_prices
from genai_prices import data_snapshot
from genai_prices.types import TieredPrices
from typing_extensions import override

from router.domain.pricing import ModelPrice, PriceBook, PriceStep, PriceUnknownError, UnitPrices, dearest_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from genai_prices.types import ModelInfo, PriceVariant
    from genai_prices.types import ModelPrice as PackagePrice

    from router.domain.routes import Route

_NANO: Final = 1_000_000_000
_PIECES: Final = 1_000
_STANDARD_TIERS: Final = frozenset({"", "default", "standard", "standard_only", "on_demand", "auto"})
_UNBILLED: Final = frozenset({"ollama", "vllm"})
"""Hosts that the owner runs: they bill nothing, which is knowledge and not the lack of it."""

_REGION_PERCENT: Final = {"anthropic": 110}
"""What a region may add to every price: Anthropic's inference within the US costs a tenth more."""

_DEAR_REGIONS: Final = {"anthropic": "us"}
"""The region that adds it, by the vendor's own word in its usage."""

_CACHED_MODELS_MAX: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceOverride:
    """An operator's own price of a model, in USD per million tokens; what is unset is the input's or the output's."""

    provider: str
    model: str
    input_usd: Decimal
    output_usd: Decimal
    cache_read_usd: Decimal | None = None
    cache_write_usd: Decimal | None = None


class GenaiPriceBook(PriceBook):
    """The package's prices under the operator's overrides."""

    def __init__(self, overrides: Sequence[PriceOverride] = ()) -> None:
        self._overrides = {(row.provider, row.model): _overriding(row) for row in overrides}
        self._version = f"genai-prices/{genai_prices.__version__}"
        if overrides:
            digest = hashlib.sha256(repr(sorted(overrides, key=repr)).encode()).hexdigest()[:8]
            self._version += f"+{digest}"
        self._known: dict[tuple[str, str], ModelInfo] = {}

    @property
    @override
    def version(self) -> str:
        return self._version

    @override
    def price(
        self, route: Route, model: str, *, now: datetime, tier: str | None = None, region: str | None = None
    ) -> ModelPrice:
        own = self._own_price(route, model)
        if own is not None:
            return own
        found = self._model(route, model)
        if (tier or "") in _STANDARD_TIERS:
            return _in_region(self._read(found.get_prices(now)), route.vendor, region)
        when = next((variant.when for variant in _active_variants(found, now) if tier in variant.when.values()), None)
        if when is None:
            return replace(self._dearest(found, route, now), is_exact=False)
        return _in_region(self._read(found.get_prices(now, when)), route.vendor, region)

    @override
    def dearest(self, route: Route, *, now: datetime) -> ModelPrice:
        model = route.model.model_id
        return self._own_price(route, model) or self._dearest(self._model(route, model), route, now)

    def _own_price(self, route: Route, model: str) -> ModelPrice | None:
        asked = route.model.model_id
        for name in (model, asked) if _is_kin(model, asked) else (model,):
            prices = self._overrides.get((route.provider, name)) or self._overrides.get((route.vendor, name))
            if prices is not None:
                return ModelPrice(base=prices, version=self._version)
        if route.vendor in _UNBILLED:
            return ModelPrice(base=_uniform(0, 0), version=self._version)
        facts = route.model.embedding
        if facts is not None and facts.price_usd:
            # The package has few prices of embeddings; the catalogue reviews those that are missing there.
            return ModelPrice(base=_uniform(_nano(Decimal(facts.price_usd), 0) or 0, 0), version=self._version)
        return None

    def _model(self, route: Route, model: str) -> ModelInfo:
        """Return the package's row of the model that answered.

        A name that is unknown there but plainly means the model asked for (a snapshot, a host's prefix) has its price.
        An unrelated one has none: the model asked for may be a free one.
        """
        asked = route.model.model_id
        for name in (model, asked) if _is_kin(model, asked) else (model,):
            key = (route.vendor, name)
            found = self._known.get(key) or _find(route, name)
            if found is not None:
                if len(self._known) < _CACHED_MODELS_MAX:
                    self._known[key] = found
                return found
        raise PriceUnknownError(provider=route.provider, model=model)

    def _dearest(self, found: ModelInfo, route: Route, now: datetime) -> ModelPrice:
        tops = [self._read(price).dearest for price in self._possible(found, now)]
        percent = _REGION_PERCENT.get(route.vendor, 100)
        return ModelPrice(base=_scaled(dearest_of(tops), percent), version=self._version)

    def _possible(self, found: ModelInfo, now: datetime) -> Iterator[PackagePrice]:
        yield found.get_prices(now)
        if isinstance(found.prices, list):
            # A time of day may pass between reserve and call, so all of them are possible.
            yield from (row.prices for row in found.prices if _is_time_of_day(row.constraint))
        for variant in _active_variants(found, now):
            yield found.get_prices(now, variant.when)

    def _read(self, price: PackagePrice) -> ModelPrice:
        base = _unit_prices(price, above=0)
        tiered = [value for value in vars(price).values() if isinstance(value, TieredPrices)]
        starts = sorted({tier.start for value in tiered for tier in value.tiers})
        steps = tuple(
            PriceStep(above_input_tokens=start, prices=_unit_prices(price, above=start + 1)) for start in starts
        )
        return ModelPrice(base=base, steps=steps, version=self._version)


def _active_variants(found: ModelInfo, now: datetime) -> Iterator[PriceVariant]:
    for variant in found.price_variants or ():
        if variant.constraint is None or variant.constraint.active(now):
            yield variant


def _in_region(price: ModelPrice, vendor: str, region: str | None) -> ModelPrice:
    """Return a price with what the reported region adds to it."""
    if region is None or _DEAR_REGIONS.get(vendor) != region:
        return price
    percent = _REGION_PERCENT[vendor]
    steps = tuple(replace(step, prices=_scaled(step.prices, percent)) for step in price.steps)
    return replace(price, base=_scaled(price.base, percent), steps=steps)


def _find(route: Route, model: str) -> ModelInfo | None:
    snapshot = data_snapshot.get_snapshot()
    provider_id = None if route.vendor == "openai_compatible" else route.vendor
    url = route.base_url if provider_id is None else None
    try:
        _, found = snapshot.find_provider_model(model, None, provider_id, url)
    except LookupError:
        return None
    return found


def _is_kin(answered: str, asked: str) -> bool:
    """Say whether one name is the other with something added before or behind."""
    short, long = sorted((answered.lower(), asked.lower()), key=len)
    return long.startswith(short) or long.endswith(f"/{short}")


def _is_time_of_day(constraint: object) -> bool:
    return hasattr(constraint, "start_time")


def _unit_prices(price: PackagePrice, *, above: int) -> UnitPrices:
    inputs, outputs = _nano(price.input_mtok, above), _nano(price.output_mtok, above)
    if inputs is None:
        inputs = 0
    written = _nano(price.cache_write_mtok, above)
    return UnitPrices(
        input_tokens=inputs,
        # An embedding model has no price of output, and gives none.
        output_tokens=outputs or 0,
        cache_read_tokens=_or(_nano(price.cache_read_mtok, above), inputs),
        cache_write_5m_tokens=_or(written, inputs),
        cache_write_1h_tokens=_or(_nano(price.cache_write_1h_mtok, above), _or(written, inputs)),
        input_audio_tokens=_or(_nano(price.input_audio_mtok, above), inputs),
        output_audio_tokens=_or(_nano(price.output_audio_mtok, above), outputs or 0),
        reasoning_tokens=_or(_nano(price.output_reasoning_mtok, above), outputs or 0),
        web_search=_or(_nano(price.web_searches_kcount, above), 0) // _PIECES,
        request=_or(_nano(price.requests_kcount, above), 0) // _PIECES,
    )


def _nano(value: Decimal | TieredPrices | None, above: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, TieredPrices):
        amount = value.base
        for tier in value.tiers:
            if above > tier.start:
                amount = tier.price
    else:
        amount = value
    return int((amount * _NANO).to_integral_value(rounding="ROUND_CEILING"))


def _or(value: int | None, other: int) -> int:
    return other if value is None else value


def _uniform(inputs: int, outputs: int) -> UnitPrices:
    return UnitPrices(
        input_tokens=inputs,
        output_tokens=outputs,
        cache_read_tokens=inputs,
        cache_write_5m_tokens=inputs,
        cache_write_1h_tokens=inputs,
        input_audio_tokens=inputs,
        output_audio_tokens=outputs,
        reasoning_tokens=outputs,
    )


def _overriding(row: PriceOverride) -> UnitPrices:
    inputs, outputs = _nano(row.input_usd, 0) or 0, _nano(row.output_usd, 0) or 0
    written = _or(_nano(row.cache_write_usd, 0), inputs)
    return replace(
        _uniform(inputs, outputs),
        cache_read_tokens=_or(_nano(row.cache_read_usd, 0), inputs),
        cache_write_5m_tokens=written,
        cache_write_1h_tokens=written,
    )


def _scaled(prices: UnitPrices, percent: int) -> UnitPrices:
    names = UnitPrices.__dataclass_fields__
    return UnitPrices(**{name: -(-getattr(prices, name) * percent // 100) for name in names})
