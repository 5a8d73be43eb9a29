"""Prices: whole nano-USD, the reported tier for a settlement, the dearest for a reserve, never zero for unknown."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalogue.book import load_catalogue
from catalogue.models import Declared, Dialect, Model
from router.domain.bounds import TokenBound
from router.domain.pricing import PriceUnknownError, ceiling, cost_of_bound, cost_of_call, cost_of_usage
from router.domain.routes import Route
from router.domain.usage import ModelUsage, TokenCounts, Usage, usage_of
from router.providers.price_book import GenaiPriceBook, PriceOverride

NOW = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
BOOK = GenaiPriceBook()
CATALOGUE = load_catalogue()
ONE = TokenCounts(input_tokens=1_000_000, output_tokens=1_000_000)


def _route(provider: str, model_id: str, **more: Any) -> Route:
    model = CATALOGUE.model(provider, model_id) or Model(provider=provider, model_id=model_id, is_reviewed=False)
    return Route(provider=provider, dialect=Dialect.OPENAI_CHAT, base_url="https://provider.test", model=model, **more)


def _cost(route: Route, counts: TokenCounts, *, book: GenaiPriceBook = BOOK, **reported: Any) -> int:
    model = route.model.model_id
    price = book.price(route, model, now=NOW, **reported)
    return cost_of_usage(usage_of(model, counts), {model: price}).nano_usd


def test_a_cost_is_whole_nano_usd_rounded_up() -> None:
    """One token of gpt-4o-mini is 150 nano-USD; half a nano-USD is charged whole."""
    mini, large = _route("openai", "gpt-4o-mini"), _route("openai", "gpt-5-nano")
    assert _cost(mini, TokenCounts(input_tokens=1)) == 150
    assert _cost(mini, TokenCounts(output_tokens=1)) == 600
    assert _cost(large, TokenCounts(input_tokens=1, cache_read_tokens=1)) == 5


@given(
    inputs=st.integers(min_value=0, max_value=400_000),
    outputs=st.integers(min_value=0, max_value=128_000),
    read=st.integers(min_value=0, max_value=200_000),
    written=st.integers(min_value=0, max_value=200_000),
)
def test_costs_are_the_packages_own(inputs: int, outputs: int, read: int, written: int) -> None:
    """Whole-number arithmetic gives what the package's decimals give, tiers included, rounded up."""
    for provider, model_id in (("anthropic", "claude-haiku-5-5"), ("anthropic", "claude-sonnet-4-5")):
        counts = TokenCounts(
            input_tokens=inputs + read + written,
            output_tokens=outputs,
            cache_read_tokens=read,
            cache_write_5m_tokens=written,
        )
        theirs = genai_prices.calc_price(
            genai_prices.Usage(
                input_tokens=counts.input_tokens,
                output_tokens=outputs,
                cache_read_tokens=read,
                cache_write_tokens=written,
            ),
            model_id,
            provider_id=provider,
            genai_request_timestamp=NOW,
        ).total_price
        ours = _cost(_route(provider, model_id), counts)
        assert 0 <= ours - theirs * 1_000_000_000 < 1


@pytest.mark.parametrize(
    "route",
    [
        _route("openai", "gpt-nobody-knows"),
        _route("openai_compatible", "own-model"),
        _route("openrouter", "nobody/nothing"),
        _route("no_such_vendor", "m"),
    ],
)
def test_an_unknown_price_is_an_error_and_never_zero(route: Route) -> None:
    """Neither a reserve nor a settlement can be had for nothing."""
    with pytest.raises(PriceUnknownError) as caught:
        BOOK.dearest(route, now=NOW)
    assert caught.value.facts["model"] == route.model.model_id
    with pytest.raises(PriceUnknownError):
        BOOK.price(route, route.model.model_id, now=NOW)


def test_a_snapshot_of_the_model_asked_has_its_price_and_another_model_has_not() -> None:
    """OpenRouter may answer from a dear model where a free one was asked."""
    free = _route("openrouter", "google/gemini-2.0-flash-exp:free")
    mini = _route("openai", "gpt-4o-mini")
    assert BOOK.price(mini, "gpt-4o-mini-2031-01-01", now=NOW) == BOOK.price(mini, "gpt-4o-mini", now=NOW)
    with pytest.raises(PriceUnknownError):
        BOOK.price(free, "x-ai/grok-of-tomorrow", now=NOW)


def test_hosts_that_their_owner_runs_bill_nothing() -> None:
    """That is known, not missing."""
    assert _cost(_route("ollama", "llama3.2"), ONE) == 0


def test_the_operators_price_comes_first_and_marks_the_version() -> None:
    """Also for a model that the package does not know."""
    row = PriceOverride(provider="openai_compatible", model="own", input_usd=Decimal("0.5"), output_usd=Decimal(2))
    book = GenaiPriceBook([row])
    assert _cost(_route("openai_compatible", "own"), ONE, book=book) == 2_500_000_000
    assert book.version.startswith(f"genai-prices/{genai_prices.__version__}+")
    assert book.version != GenaiPriceBook([PriceOverride(**{**_fields(row), "output_usd": Decimal(3)})]).version


def _fields(row: PriceOverride) -> dict[str, Any]:
    return {"provider": row.provider, "model": row.model, "input_usd": row.input_usd, "output_usd": row.output_usd}


def test_a_settlement_is_priced_by_the_tier_and_region_reported() -> None:
    """Priority costs more, a region adds a tenth, a tier without prices is taken at the dearest and says so."""
    mini, haiku = _route("openai", "gpt-4o-mini"), _route("anthropic", "claude-haiku-4-5")
    assert _cost(mini, ONE, tier="priority") > _cost(mini, ONE, tier="default") == _cost(mini, ONE)
    assert _cost(haiku, ONE, region="us") == _cost(haiku, ONE) * 11 // 10
    odd = BOOK.price(mini, "gpt-4o-mini", now=NOW, tier="tier_of_tomorrow")
    assert not odd.is_exact
    assert odd.base.input_tokens >= BOOK.price(mini, "gpt-4o-mini", now=NOW, tier="priority").base.input_tokens


@pytest.mark.parametrize(
    ("provider", "model_id"),
    [
        (provider.slug, model_id)
        for provider in CATALOGUE.providers
        for model_id in sorted({*provider.default_models.values()})
    ],
)
def test_every_default_model_has_a_price_and_its_dearest_is_no_less(provider: str, model_id: str) -> None:
    """A default that cannot be priced could not be reserved for."""
    route = _route(provider, model_id)
    dearest = cost_of_bound(TokenBound(input_tokens=300_000, output_tokens=9_000), BOOK.dearest(route, now=NOW))
    counts = TokenCounts(input_tokens=300_000, output_tokens=9_000, cache_write_1h_tokens=100_000)
    for tier in (None, "priority", "flex"):
        assert 0 < _cost(route, counts, tier=tier) <= dearest


def test_each_part_of_a_usage_has_its_own_models_price() -> None:
    """An advisor's tokens cost what the advisor costs; searches are charged by the piece."""
    haiku, opus = _route("anthropic", "claude-haiku-4-5"), "claude-opus-4-8"
    price = {name: BOOK.price(haiku, name, now=NOW) for name in ("claude-haiku-4-5", opus)}
    parts = (ModelUsage(model="claude-haiku-4-5", counts=ONE), ModelUsage(model=opus, counts=ONE))
    usage = Usage(processed=ONE, billable=ONE.plus(ONE), parts=parts, web_searches=3)
    found = cost_of_call(usage, None, price, BOOK.version)
    assert found.nano_usd == (1 + 5 + 5 + 25) * 1_000_000_000 + 3 * 10_000_000
    assert not found.is_reported


def test_the_vendors_own_word_on_the_cost_is_the_cost() -> None:
    """Where the codec passes one on."""
    found = cost_of_call(usage_of("m", ONE), 42, {}, BOOK.version)
    assert (found.nano_usd, found.is_reported) == (42, True)


def test_the_ceiling_for_upstreams_is_what_was_reserved() -> None:
    """No upstream may cost more than the dearest."""
    price = BOOK.dearest(_route("openrouter", "openai/gpt-4o-mini"), now=NOW)
    assert ceiling(price).output_nano_usd_per_mtok == price.dearest.output_tokens


def test_a_known_vendors_host_is_priced_as_that_vendors() -> None:
    """A compatible base URL at Groq costs what Groq costs."""
    declared = CATALOGUE.model("groq", "openai/gpt-oss-20b", Declared())
    assert declared is not None
    route = Route(
        provider="openai_compatible",
        vendor="groq",
        dialect=Dialect.OPENAI_CHAT,
        base_url="https://api.groq.com/openai/v1",
        model=declared,
    )
    assert BOOK.dearest(route, now=NOW) == BOOK.dearest(_route("groq", "openai/gpt-oss-20b"), now=NOW)
