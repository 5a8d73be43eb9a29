"""The reserve and the price, judged by what recorded calls really used and were really billed."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from router.domain.bounds import CallShape, token_bound
from router.domain.errors import ProviderError
from router.domain.pricing import PriceUnknownError, cost_of_usage
from router.providers.price_book import GenaiPriceBook
from testkit.figures import show
from tests.contract.provider_expectations import expected_error
from tests.contract.provider_recordings import CATALOGUE, PROVIDERS, Recording, folder, load, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.domain.completions import Completion

VENDOR_RUN_MODELS = ("compound-beta", "groq/compound", "search-preview", "openrouter/auto", ":online")
"""Models that run tools of their own accord: nothing in the request shows what they will read."""


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Counter[tuple[str, str]]]:
    """Gather what was done with each recording, and show it when all are through."""
    rows: Counter[tuple[str, str]] = Counter()
    yield rows
    lines = [f"  {provider:<12} {what:<64} {count:>5}" for (provider, what), count in sorted(rows.items())]
    show(request.config, f"bounds and costs of {folder()}", *lines)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_reserve_covers_what_every_recorded_call_used(provider: str, table: Counter[tuple[str, str]]) -> None:
    """No recorded call of a supported kind used more tokens than its request's bound."""
    below = []
    for recording in _completions(provider):
        unsupported = _unsupported(recording)
        if unsupported:
            table[provider, f"no bound: {unsupported}"] += 1
            continue
        table[provider, "bounded"] += 1
        used = parse(recording).usage.billable
        bound = _bound(recording)
        if used.input_tokens > bound:
            below.append(f"{recording.id}: {used.input_tokens} input tokens above {bound}")
        most = _output_tokens_max(recording)
        if most is not None and used.output_tokens > most:
            below.append(f"{recording.id}: {used.output_tokens} output tokens above {most}")
    assert below == []


def test_openrouter_is_priced_as_it_billed(table: Counter[tuple[str, str]]) -> None:
    """Where OpenRouter billed tokens alone, the catalogue's price of the recorded day is what it billed, mostly.

    It resells at upstreams' own prices, so some differ; what it reports is always what is settled.
    """
    book = GenaiPriceBook()
    same, other = 0, []
    for recording in _completions("openrouter"):
        completion = parse(recording)
        if completion.provider_cost_nano_usd in {None, 0} or _unsupported(recording):
            continue
        try:
            cost = _cost(recording, completion, book)
        except PriceUnknownError:
            table["openrouter", "cost: price unknown, never zero"] += 1
            continue
        if cost == completion.provider_cost_nano_usd:
            same += 1
        else:
            other.append(recording.id)
    table["openrouter", "cost: as billed"] += same
    table["openrouter", "cost: billed at an upstream's own price"] += len(other)
    assert same > len(other)


@pytest.mark.parametrize("provider", ["anthropic", "openai", "groq", "cerebras", "deepseek"])
def test_every_recorded_usage_has_a_price(provider: str) -> None:
    """A recorded model has a price above zero, or raises; none is settled at nothing."""
    book = GenaiPriceBook()
    for recording in _completions(provider):
        completion = parse(recording)
        if completion.usage.billable.total_tokens == 0:
            continue
        try:
            assert _cost(recording, completion, book) > 0, recording.id
        except PriceUnknownError as error:
            assert error.facts["model"] == completion.model  # noqa: PT017 - raising is the other right answer


def _completions(provider: str) -> Iterator[Recording]:
    for recording in load(provider):
        if recording.dialect is None or recording.is_embedding or expected_error(recording) is not None:
            continue
        try:
            parse(recording)
        except ProviderError:
            continue
        yield recording


def _cost(recording: Recording, completion: Completion, book: GenaiPriceBook) -> int:
    when = _when(recording)
    prices = {
        part.model: book.price(recording.route, part.model, now=when, tier=completion.tier, region=completion.region)
        for part in completion.usage.parts
    }
    return cost_of_usage(completion.usage, prices).nano_usd


def _when(recording: Recording) -> datetime:
    first = recording.events()[0] if recording.is_stream else json.loads(recording.body)
    created = first.get("created")
    return datetime.fromtimestamp(created, UTC) if created else recording.response.receive_time


def _unsupported(recording: Recording) -> str:
    """Return why a recorded request has no bound; the Router refuses such calls unless the mapping allows them."""
    request = recording.request
    text = json.dumps(request)
    if any(_is_vendor_run(tool) for tool in request.get("tools") or []):
        return "vendor-run tools"
    if request.get("mcp_servers") or request.get("web_search_options") or request.get("plugins"):
        return "vendor-run tools"
    if any(name in str(request.get("model")) for name in VENDOR_RUN_MODELS):
        return "a model that runs tools of its own"
    if request.get("preset") or request.get("models"):
        return "a prompt or a model kept at the vendor"
    if any(mark in text for mark in ('"image', '"document"', '"file"', '"input_audio"', '"video')):
        return "media by URL, files or audio"
    return ""


def _is_vendor_run(tool: Any) -> bool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return kind not in {None, "function", "custom"}


def _output_tokens_max(recording: Recording) -> int | None:
    limit = recording.request.get("max_tokens") or recording.request.get("max_completion_tokens")
    return limit * (recording.request.get("n") or 1) if limit else None


def _bound(recording: Recording) -> int:
    request = recording.request
    shape = CallShape(
        text_bytes=len(json.dumps(request, separators=(",", ":"), ensure_ascii=False).encode()),
        messages=len(request.get("messages", [])) + 1,
        has_tools=bool(request.get("tools") or request.get("functions")),
        has_schema=bool(request.get("response_format") or request.get("output_config") or request.get("output_format")),
        candidates=request.get("n") or 1,
    )
    model = str(request.get("model"))
    overhead = CATALOGUE.overheads(recording.provider, model)
    return token_bound(shape, overhead, CATALOGUE.image_rule("unknown"), output_tokens_max=0).input_tokens
