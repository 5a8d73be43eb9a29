"""A vendor that chooses among upstreams is held to the price that was reserved."""

from __future__ import annotations

import orjson

from catalogue.book import load_catalogue
from catalogue.models import Operation
from router.domain.completions import ChatCall, Message, Role, TextPart
from router.domain.routes import Route
from router.providers.price_book import GenaiPriceBook
from router.providers.registry import Codecs
from router.usecases.costs import Costs
from router.usecases.questions import ChatQuestion, Vendors
from testkit.fake_clock import FakeClock

CATALOGUE = load_catalogue()


def _asked(provider: str, model_id: str) -> tuple[dict[str, object], int]:
    model = CATALOGUE.model(provider, model_id)
    assert model is not None
    dialect = CATALOGUE.dialect(provider, model)
    route = Route(provider=provider, dialect=dialect, base_url="https://provider.test", model=model)
    costs = Costs(prices=GenaiPriceBook(), catalogue=CATALOGUE, clock=FakeClock())
    vendors = Vendors(codecs=Codecs(), catalogue=CATALOGUE, costs=costs)
    said = Message(role=Role.USER, parts=(TextPart(text="Hello"),))
    question = ChatQuestion(
        Operation.CHAT, lambda viable: ChatCall(messages=(said,), output_tokens_max=viable.output_tokens_max), vendors
    )
    request = question.build(route, None)
    return orjson.loads(request.body), question.estimate(route, request).output_nano_usd_per_mtok


def test_openrouter_may_not_run_a_call_above_the_reserved_price() -> None:
    """The request itself says the most that an upstream may cost."""
    body, output_price = _asked("openrouter", "openai/gpt-4o-mini")
    terms = body["provider"]
    assert isinstance(terms, dict)
    assert terms["max_price"] == {"prompt": 0.15, "completion": output_price / 1_000_000_000}


def test_a_vendor_that_runs_its_own_models_is_not_asked() -> None:
    """Others would refuse a field that they do not know."""
    body, _ = _asked("openai", "gpt-4o-mini")
    assert "provider" not in body
