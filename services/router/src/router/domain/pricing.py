"""Money: what tokens cost, in whole nano-USD.

Unit prices are nano-USD per million tokens, because some vendors' prices are fractions of a nano-USD a token. A cost is
rounded up, once, at its end. A price that nobody knows is an error, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Protocol

from router.domain.completions import PriceCeiling
from servicekit.errors import DomainError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from router.domain.bounds import TokenBound
    from router.domain.routes import Route
    from router.domain.usage import TokenCounts, Usage

TOKENS_A_PRICE: Final = 1_000_000
_CHOOSING_VENDORS: Final = frozenset({"openrouter"})


class PriceUnknownError(DomainError):
    """No price is known for a model, so that its cost can neither be reserved nor settled."""

    def __init__(self, *, provider: str, model: str) -> None:
        """Make the error; the model's name is the owner's own mapping."""
        super().__init__(
            f"No price is known for model {model!r} of {provider}. "
            "Map another model, or let the operator set a price for it.",
            provider=provider,
            model=model,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrices:
    """Prices of one model, in nano-USD per million tokens; searches and requests by the piece."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    input_audio_tokens: int
    output_audio_tokens: int
    reasoning_tokens: int
    web_search: int = 0
    request: int = 0

    def cost(self, counts: TokenCounts) -> int:
        """Return the cost of tokens in millionths of a nano-USD, so that sums stay exact until they are rounded."""
        parts = counts.cache_read_tokens + counts.cache_write_5m_tokens + counts.cache_write_1h_tokens
        # Audio may come from the cache as well; what is counted twice is not charged as plain input too.
        plain_input = max(0, counts.input_tokens - parts - counts.input_audio_tokens)
        plain_output = max(0, counts.output_tokens - counts.reasoning_tokens - counts.output_audio_tokens)
        return (
            plain_input * self.input_tokens
            + counts.cache_read_tokens * self.cache_read_tokens
            + counts.cache_write_5m_tokens * self.cache_write_5m_tokens
            + counts.cache_write_1h_tokens * self.cache_write_1h_tokens
            + counts.input_audio_tokens * self.input_audio_tokens
            + plain_output * self.output_tokens
            + counts.reasoning_tokens * self.reasoning_tokens
            + counts.output_audio_tokens * self.output_audio_tokens
        )

    @property
    def dearest_input(self) -> int:
        """Return the highest price that an input token can have."""
        return max(
            self.input_tokens,
            self.cache_read_tokens,
            self.cache_write_5m_tokens,
            self.cache_write_1h_tokens,
            self.input_audio_tokens,
        )

    @property
    def dearest_output(self) -> int:
        """Return the highest price that an output token can have."""
        return max(self.output_tokens, self.reasoning_tokens, self.output_audio_tokens)


_NAMES: Final = tuple(field.name for field in fields(UnitPrices))


def dearest_of(prices: Iterable[UnitPrices]) -> UnitPrices:
    """Return the highest of each price."""
    rows = list(prices)
    return UnitPrices(**{name: max(getattr(row, name) for row in rows) for name in _NAMES})


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceStep:
    """Prices of a call whose input exceeds a number of tokens; they apply to the whole call."""

    above_input_tokens: int
    prices: UnitPrices


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrice:
    """All prices of one model at one tier and moment.

    Attributes:
        base: The usual prices.
        steps: Prices of longer inputs, ascending.
        version: What the prices were taken from; written beside every cost.
        is_exact: Whether the tier reported has prices of its own; otherwise the dearest were taken.
    """

    base: UnitPrices
    steps: tuple[PriceStep, ...] = ()
    version: str
    is_exact: bool = True

    def prices_at(self, input_tokens: int) -> UnitPrices:
        """Return the prices of a call with so many input tokens."""
        found = self.base
        for step in self.steps:
            if input_tokens > step.above_input_tokens:
                found = step.prices
        return found

    @property
    def dearest(self) -> UnitPrices:
        """Return the highest of each price over all steps."""
        return dearest_of([self.base, *(step.prices for step in self.steps)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a call cost.

    Attributes:
        nano_usd: The amount.
        price_version: What it was reckoned by.
        is_reported: Whether the vendor itself named the amount.
        is_exact: Whether each price was known for what was reported.
    """

    nano_usd: int
    price_version: str
    is_reported: bool = False
    is_exact: bool = True


class PriceBook(Protocol):
    """Where prices are looked up."""

    @property
    def version(self) -> str:
        """What the prices were taken from, operator's overrides included."""
        ...

    def price(
        self, route: Route, model: str, *, now: datetime, tier: str | None = None, region: str | None = None
    ) -> ModelPrice:
        """Return the prices of the model that answered, at the tier and in the region reported.

        Raises:
            PriceUnknownError: There is none.
        """
        ...

    def dearest(self, route: Route, *, now: datetime) -> ModelPrice:
        """Return the prices to reserve with: the highest of every tier and region that the call may be billed at.

        Raises:
            PriceUnknownError: There is none.
        """
        ...


def cost_of_bound(bound: TokenBound, price: ModelPrice) -> int:
    """Return the most that a call within a bound can cost, in nano-USD."""
    prices = price.dearest
    tokens = bound.input_tokens * prices.dearest_input + bound.output_tokens * prices.dearest_output
    return _rounded_up(tokens) + prices.request


def cost_of_usage(usage: Usage, prices: dict[str, ModelPrice]) -> Cost:
    """Return the cost of a usage, each part by its own model's price.

    Args:
        usage: What was consumed.
        prices: The price of every model among the usage's parts.
    """
    total = 0
    for part in usage.parts:
        total += prices[part.model].prices_at(part.counts.input_tokens).cost(part.counts)
    first = prices[usage.parts[0].model]
    pieces = first.base.request + usage.web_searches * first.base.web_search
    is_exact = all(prices[part.model].is_exact for part in usage.parts)
    return Cost(nano_usd=_rounded_up(total) + pieces, price_version=first.version, is_exact=is_exact)


def cost_of_call(usage: Usage, reported_nano_usd: int | None, prices: dict[str, ModelPrice], version: str) -> Cost:
    """Return the cost of a call: the vendor's own word where its codec passes one on, else the catalogue's price."""
    if reported_nano_usd is not None:
        return Cost(nano_usd=reported_nano_usd, price_version=version, is_reported=True)
    return cost_of_usage(usage, prices)


def chooses_upstreams(route: Route) -> bool:
    """Say whether the vendor picks who runs the call, so that the price must be held by the request itself."""
    return route.vendor in _CHOOSING_VENDORS


def ceiling(price: ModelPrice) -> PriceCeiling:
    """Return the price that a vendor which chooses upstreams must keep to: the one that is reserved."""
    dearest = price.dearest
    return PriceCeiling(input_nano_usd_per_mtok=dearest.input_tokens, output_nano_usd_per_mtok=dearest.output_tokens)


def _rounded_up(millionths: int) -> int:
    return -(-millionths // TOKENS_A_PRICE)
