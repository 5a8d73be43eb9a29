"""Real answers of real vendors, read by our codecs and, independently, by the vendors' own SDK models."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from catalogue.models import Dialect, EmbeddingFacts, ModelKind
from router.domain.embeddings import EmbedCall
from router.domain.errors import ProviderError
from router.domain.routes import Route
from testkit.figures import show
from tests.contract.provider_expectations import CALLERS_TOOLS, embedding_of, expected_error, expected_of
from tests.contract.provider_recordings import CODECS, OWN, PROVIDERS, Recording, folder, load, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.domain.completions import Completion


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Counter[tuple[str, str]]]:
    """Gather what was done with each recording, and show it when all are through."""
    rows: Counter[tuple[str, str]] = Counter()
    yield rows
    lines = [f"  {provider:<12} {what:<64} {count:>5}" for (provider, what), count in sorted(rows.items())]
    show(request.config, f"recordings of {folder()}", *lines)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_recording_reads_as_the_vendor_says(provider: str, table: Counter[tuple[str, str]]) -> None:
    """Text, finish reason, tokens and tools of a success, and the class of an error, are those of the vendor's body."""
    recordings = load(provider)
    assert recordings, f"no recordings of {provider} in {folder()}"
    wrong = []
    for recording in recordings:
        verdict, complaint = _judge(recording)
        table[provider, verdict] += 1
        if complaint:
            wrong.append(f"{recording.id} ({recording.request.get('model')}): {complaint}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_own_small_set_reads_as_the_vendor_says(provider: str) -> None:
    """The set that ships with the repository stands by itself, so that a checkout without the full one still proves."""
    recordings = load(provider, where=OWN)
    assert recordings
    assert [complaint for recording in recordings if (complaint := _judge(recording)[1])] == []


@pytest.mark.parametrize("provider", PROVIDERS)
def test_cutting_a_stream_differently_changes_nothing(provider: str) -> None:
    """A recorded stream fed in pieces of any size gives the answer, or the error, that it gives whole."""
    streams = [recording for recording in load(provider) if recording.is_stream and recording.dialect]
    for recording in streams:
        whole = _outcome(recording, None)
        sizes = (1, 7, 1_021) if len(recording.body) < 40_000 else (13, 1_021)
        for size in sizes:
            assert _outcome(recording, size) == whole, f"{recording.id} in pieces of {size}"


def _judge(recording: Recording) -> tuple[str, str]:
    """Return what was done with a recording, and what is wrong with its reading."""
    if recording.dialect is None:
        return f"passed over: {_kind(recording)}", ""
    if recording.is_embedding and recording.status == 200:
        return "embedding", _embedding_complaint(recording)
    error = expected_error(recording)
    if error is not None:
        return f"error: {error.__name__}", _error_complaint(recording, error)
    return ("stream" if recording.is_stream else "completion"), _completion_complaint(recording)


def _kind(recording: Recording) -> str:
    if recording.path.endswith("/count_tokens"):
        return "count_tokens counts without answering"
    if "/threads/" in recording.path:
        return "messages of the Assistants API, no completion of ours"
    return f"{recording.path.split('?')[0]} is no completion"


def _completion_complaint(recording: Recording) -> str:
    expected = expected_of(recording)
    try:
        found = parse(recording)
    except ProviderError as error:
        return f"refused as {error.rule}"
    checks = {
        "text": (found.text, expected.text),
        "finish reason": (found.finish_reason, expected.finish_reason),
        "input tokens": (found.usage.processed.input_tokens, expected.input_tokens),
        "output tokens": (found.usage.processed.output_tokens, expected.output_tokens),
        "counted": (not found.usage.is_missing, expected.is_counted),
        "tools": (_tools(found, recording), expected.tools),
    }
    return "; ".join(f"{name}: {ours!r} is not {theirs!r}" for name, (ours, theirs) in checks.items() if ours != theirs)


def _tools(completion: Completion, recording: Recording) -> tuple[tuple[str, object], ...]:
    """Return the tools called, without what has no counterpart in the SDK's models.

    Groq's reports of tools already run are in none of them; of a response, functions and custom tools have a name.
    """
    if recording.dialect is Dialect.OPENAI_RESPONSES:
        unnamed = {kind.removesuffix("_call") for kind in CALLERS_TOOLS}
        calls = [call for call in completion.tool_calls if not call.is_vendor_run and call.name not in unnamed]
    else:
        calls = [call for call in completion.tool_calls if call.call_id or not call.is_vendor_run]
    return tuple((call.name, _loads(call.arguments)) for call in calls)


def _loads(arguments: str) -> object:
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments


def _error_complaint(recording: Recording, expected: type[ProviderError]) -> str:
    try:
        parse(recording)
    except ProviderError as error:
        return "" if type(error) is expected else f"{type(error).__name__} by {error.rule} is not {expected.__name__}"
    return "was read as a success"


def _embedding_complaint(recording: Recording) -> str:
    vectors, tokens = embedding_of(recording)
    route = _embedding_route(recording, len(vectors[0]))
    call = EmbedCall(texts=("a text",) * len(vectors), dimensions=len(vectors[0]))
    result = CODECS.embedding(route).parse_embed(recording.response, call, route)
    pairs = zip(result.vectors, vectors, strict=True)
    is_same = all(list(ours) == pytest.approx(theirs, abs=1e-4) for ours, theirs in pairs)
    return "" if is_same and result.usage.billable.input_tokens == tokens else "vectors or tokens differ"


def _embedding_route(recording: Recording, size: int) -> Route:
    model = recording.route.model
    facts = EmbeddingFacts(maker=recording.provider, model=model.model_id, dimensions=(size,))
    return Route(
        provider=recording.provider,
        dialect=recording.route.dialect,
        base_url=recording.route.base_url,
        model=replace(model, kind=ModelKind.EMBEDDING, embedding=facts),
    )


def _outcome(recording: Recording, size: int | None) -> object:
    try:
        return parse(recording, chunk_bytes=size)
    except ProviderError as error:
        return type(error), error.rule, error.usage
