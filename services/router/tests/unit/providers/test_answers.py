"""What answers hold beyond plain text, vendor by vendor, and what is no answer at all."""

from __future__ import annotations

import base64
import math
import struct
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from catalogue.models import Dialect, Model
from router.domain import errors
from router.domain.completions import Completion, FinishReason, PartKind
from router.domain.embeddings import EmbedCall
from router.domain.routes import Route
from router.domain.usage import UsageFlag
from router.domain.wire import WireResponse
from router.providers.registry import Codecs

NOW = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
CODECS = Codecs()
DIALECTS = {
    "anthropic": Dialect.ANTHROPIC_MESSAGES,
    "responses": Dialect.OPENAI_RESPONSES,
    "ollama": Dialect.OLLAMA,
}


def _route(name: str) -> Route:
    provider = "openai" if name == "responses" else name
    model = Model(provider=provider, model_id="asked")
    dialect = DIALECTS.get(name, Dialect.OPENAI_CHAT)
    return Route(provider=provider, dialect=dialect, base_url="https://provider.test", model=model)


def _response(body: object, status: int = 200) -> WireResponse:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return WireResponse(status=status, headers={}, body=data, receive_time=NOW)


def _parse(name: str, body: object) -> Completion:
    return CODECS.chat(_route(name)).parse_chat(_response(body), _route(name))


def _claude(**changes: Any) -> dict[str, Any]:
    usage = {"input_tokens": 10, "output_tokens": 5}
    return {"type": "message", "model": "m", "content": [], "stop_reason": "end_turn", "usage": usage, **changes}


def _chat(message: dict[str, Any], finish: str | None = "stop", **changes: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return {"model": "m", "choices": [choice], "usage": usage, **changes}


@pytest.mark.parametrize(
    ("said", "finish"),
    [
        ("end_turn", FinishReason.STOP),
        ("stop_sequence", FinishReason.STOP),
        ("max_tokens", FinishReason.LENGTH),
        ("tool_use", FinishReason.TOOL_CALL),
        ("pause_turn", FinishReason.PAUSED),
        ("compaction", FinishReason.PAUSED),
        ("refusal", FinishReason.REFUSAL),
        ("model_context_window_exceeded", FinishReason.CONTEXT_EXCEEDED),
        ("something_of_tomorrow", FinishReason.UNKNOWN),
        (None, FinishReason.UNKNOWN),
    ],
)
def test_anthropics_reasons_to_stop(said: str | None, finish: FinishReason) -> None:
    """All of its words, and one that is not known yet."""
    found = _parse("anthropic", _claude(stop_reason=said))
    assert found.finish_reason is finish
    assert found.is_refused is (finish is FinishReason.REFUSAL)


def test_anthropics_input_includes_the_cache() -> None:
    """Input is what the cache gave, what it took and the rest; lifetimes are told apart."""
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 200,
        "cache_creation_input_tokens": 40,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 30},
        "output_tokens": 50,
        "output_tokens_details": {"thinking_tokens": 20},
        "server_tool_use": {"web_search_requests": 2},
        "service_tier": "priority",
        "inference_geo": "us",
    }
    found = _parse("anthropic", _claude(usage=usage))
    counts = found.usage.billable
    assert (counts.input_tokens, counts.cache_read_tokens) == (250, 200)
    assert (counts.cache_write_5m_tokens, counts.cache_write_1h_tokens) == (10, 30)
    assert (counts.output_tokens, counts.reasoning_tokens) == (50, 20)
    assert (found.usage.web_searches, found.tier, found.region) == (2, "priority", "us")


def test_anthropics_other_iterations_are_billed_beside_the_answer() -> None:
    """An advisor and a compaction are processed and billed by others' counts, by their own models."""
    own = {"input_tokens": 10, "output_tokens": 5, "type": "message"}
    advisor = {"input_tokens": 100, "output_tokens": 7, "type": "advisor_message", "model": "advisor"}
    compaction = {"input_tokens": 1_000, "output_tokens": 50, "type": "compaction"}
    usage = {"input_tokens": 10, "output_tokens": 5, "iterations": [own, advisor, compaction]}
    found = _parse("anthropic", _claude(usage=usage)).usage
    assert (found.processed.input_tokens, found.billable.input_tokens) == (10, 1_110)
    assert [(part.model, part.counts.output_tokens) for part in found.parts] == [("m", 5), ("advisor", 7), ("m", 50)]


def test_anthropics_blocks_of_every_kind_are_read_or_kept() -> None:
    """Text is joined, thinking is kept for replay, tools are told apart by who runs them, the unknown is kept."""
    content = [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "text", "text": "a", "citations": [{"type": "char_location"}]},
        {"type": "server_tool_use", "id": "1", "name": "web_search", "input": {"query": "q"}},
        {"type": "web_search_tool_result", "tool_use_id": "1", "content": []},
        {"type": "mcp_tool_use", "id": "2", "name": "far", "input": {}},
        {"type": "tool_use", "id": "3", "name": "near", "input": {"x": 1}},
        {"type": "block_of_tomorrow"},
        {"type": "text", "text": "b"},
        "no block at all",
    ]
    found = _parse("anthropic", _claude(content=content))
    assert (found.text, found.reasoning) == ("ab", "Hm.")
    assert [(call.name, call.is_vendor_run) for call in found.tool_calls] == [
        ("web_search", True),
        ("far", True),
        ("near", False),
    ]
    assert found.tool_calls[2].arguments == '{"x":1}'
    assert [part.kind for part in found.parts].count(PartKind.OTHER) == 2
    assert orjson.loads(found.parts[0].provider_state)["signature"] == "s"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None}, ""),
        ({"content": "plain"}, "plain"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": None, "audio": {"id": "x", "transcript": "spoken"}}, "spoken"),
        ({}, ""),
    ],
)
def test_content_in_all_its_forms(message: dict[str, Any], text: str) -> None:
    """Nothing, text, a list of parts, speech."""
    assert _parse("openai", _chat(message)).text == text


@pytest.mark.parametrize(
    ("said", "finish"),
    [
        ("stop", FinishReason.STOP),
        ("eos", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("tool_calls", FinishReason.TOOL_CALL),
        ("function_call", FinishReason.TOOL_CALL),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("error", FinishReason.ERROR),
        ("insufficient_system_resource", FinishReason.ERROR),
        (None, FinishReason.UNKNOWN),
    ],
)
def test_openais_reasons_to_stop(said: str | None, finish: FinishReason) -> None:
    """Those of OpenAI and of the vendors of its dialect."""
    assert _parse("openai", _chat({"content": "x"}, said)).finish_reason is finish


def test_an_error_beside_a_choice_is_its_end() -> None:
    """OpenRouter reports an upstream's failure beside what came before it."""
    body = _chat({"content": "half"}, None)
    body["choices"][0]["error"] = {"code": 502, "message": "upstream"}
    found = _parse("openrouter", body)
    assert (found.text, found.finish_reason) == ("half", FinishReason.ERROR)


def test_refusals_reasoning_and_tools_of_openais_dialect() -> None:
    """Each has its place; a reasoning's details are kept for replay."""
    found = _parse(
        "openrouter",
        _chat(
            {
                "content": None,
                "refusal": "No.",
                "reasoning": None,
                "reasoning_details": [{"type": "reasoning.summary", "summary": "Thought."}],
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                    {"id": "2", "type": "custom", "custom": {"name": "g", "input": "free text"}},
                ],
            }
        ),
    )
    assert (found.refusal, found.reasoning, found.is_refused) == ("No.", "Thought.", True)
    assert [(call.name, call.arguments) for call in found.tool_calls] == [("f", '{"a":1}'), ("g", "free text")]
    assert found.parts[0].provider_state == b'[{"type":"reasoning.summary","summary":"Thought."}]'


def test_several_candidates_keep_their_order() -> None:
    """The first by index is the answer, however the vendor lists them."""
    body = _chat({"content": "first"})
    body["choices"].insert(0, {"index": 1, "message": {"content": "second"}, "finish_reason": "length"})
    found = _parse("openai", body)
    assert (found.text, found.finish_reason, found.other_texts) == ("first", FinishReason.STOP, ("second",))


def test_parts_above_their_totals_are_cut_and_flagged() -> None:
    """Vendors report reasoning above completion, and caches above the prompt."""
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 90},
        "completion_tokens_details": {"reasoning_tokens": 9, "audio_tokens": -1},
    }
    found = _parse("openai", _chat({"content": "x"}, usage=usage)).usage
    assert (found.billable.cache_read_tokens, found.billable.reasoning_tokens) == (10, 5)
    assert found.flags == {UsageFlag.CLAMPED}


@pytest.mark.parametrize("usage", [None, {}, [], "x", {"prompt_tokens": None}])
def test_an_answer_without_usage_says_so(usage: object) -> None:
    """It counts as unknown, never as nothing."""
    assert _parse("openai", _chat({"content": "x"}, usage=usage)).usage.is_missing


def test_groqs_compound_names_its_models() -> None:
    """Its breakdown is taken where it explains the whole, and the usage is flagged where not."""
    row = {"model": "small", "usage": {"prompt_tokens": 4, "completion_tokens": 2}}
    other = {"model": "large", "usage": {"prompt_tokens": 6, "completion_tokens": 3}}
    told = _parse("groq", _chat({"content": "x"}, usage_breakdown={"models": [row, other]})).usage
    part = _parse("groq", _chat({"content": "x"}, usage_breakdown={"models": [row]})).usage
    assert [each.model for each in told.parts] == ["small", "large"]
    assert part.flags == {UsageFlag.UNITEMIZED}
    assert part.billable.input_tokens == 10


@pytest.mark.parametrize(
    ("usage", "nano_usd"),
    [
        ({"cost": 0.00000405, "is_byok": False}, 4_050),
        ({"cost": 1, "is_byok": False, "cost_details": {"upstream_inference_cost": 9.0}}, 1_000_000_000),
        ({"cost": 0.000001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.00002}}, 21_000),
        ({"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, None),
        ({"cost": -1}, None),
        ({"cost": "0.1"}, None),
        ({}, None),
    ],
)
def test_openrouters_cost_is_its_own_and_the_upstreams(usage: dict[str, Any], nano_usd: int | None) -> None:
    """What it charged, and on a key of its user's own what the upstream charges; half of it is none."""
    counted = {"prompt_tokens": 1, "completion_tokens": 1, **usage}
    assert _parse("openrouter", _chat({"content": "x"}, usage=counted)).provider_cost_nano_usd == nano_usd
    assert _parse("openai_compatible", _chat({"content": "x"}, usage=counted)).provider_cost_nano_usd is None


def test_responses_items_of_every_kind() -> None:
    """Reasoning is kept for replay, tools are told apart, refusals are found, an incomplete end has its reason."""
    body = {
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "model": "m",
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "e"},
            {"type": "web_search_call", "id": "w", "action": {"query": "q"}},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {
                "type": "message",
                "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "No."}],
            },
            {"type": "item_of_tomorrow"},
        ],
        "usage": {"input_tokens": 3, "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 4}},
    }
    found = _parse("responses", body)
    assert (found.text, found.reasoning, found.refusal) == ("a", "Hm.", "No.")
    assert found.finish_reason is FinishReason.LENGTH
    assert [(call.name, call.is_vendor_run) for call in found.tool_calls] == [("web_search", True), ("f", False)]
    assert found.usage.billable.reasoning_tokens == 4


def test_a_response_that_waits_for_a_tool() -> None:
    """It says "completed" then as well."""
    body = {
        "status": "completed",
        "output": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}],
    }
    assert _parse("responses", body).finish_reason is FinishReason.TOOL_CALL


def test_ollama_with_a_cached_prompt_is_flagged() -> None:
    """It leaves the count of a prompt that it still had out."""
    body = {"model": "m", "message": {"content": "x", "thinking": "Hm."}, "done": True, "eval_count": 4}
    found = _parse("ollama", body)
    assert found.usage.flags == {UsageFlag.PARTIAL}
    assert (found.reasoning, found.finish_reason) == ("Hm.", FinishReason.STOP)


@pytest.mark.parametrize("name", ["anthropic", "openai", "responses", "ollama"])
@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{}", b"[]", b'{"choices": []}', b'{"content": "x"}', b'{"output": {}}', b'{"a":']
)
def test_a_success_that_is_no_answer_is_malformed_and_may_have_been_billed(name: str, body: bytes) -> None:
    """It is never an empty answer."""
    with pytest.raises(errors.MalformedAnswerError) as caught:
        _parse(name, body)
    assert caught.value.may_have_been_billed


@pytest.mark.parametrize("status", [201, 204, 301, 302, 307, 400, 500])
def test_only_a_success_is_parsed(status: int) -> None:
    """A redirect is no answer, and is not followed."""
    with pytest.raises(errors.ProviderError):
        CODECS.chat(_route("openai")).parse_chat(_response(b"{}", status), _route("openai"))


def _embed(rows: object, texts: int = 2, size: int = 2) -> list[list[float]]:
    route = _route("openai")
    call = EmbedCall(texts=("t",) * texts, dimensions=size)
    body = {"model": "m", "data": rows, "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    result = CODECS.embedding(route).parse_embed(_response(body), call, route)
    return [list(vector) for vector in result.vectors]


def test_vectors_come_in_the_order_of_the_texts_and_of_length_one() -> None:
    """By index, whatever the order of the answer; numbers or base64."""
    packed = base64.b64encode(struct.pack("<2f", 0.0, 2.0)).decode()
    rows = [{"index": 1, "embedding": [3.0, 4.0]}, {"index": 0, "embedding": packed}]
    first, second = _embed(rows)
    assert first == [0.0, 1.0]
    assert second == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(
    "vector",
    [[0.0, 0.0], [1.0], [1.0, 2.0, 3.0], ["a", "b"], "!!", None, [math.nan, 1.0], [1e308, 1e308], "AAAA", [1, None]],
)
def test_vectors_that_are_none_are_malformed(vector: object) -> None:
    """Of no length, of another size, of no numbers."""
    if isinstance(vector, list) and any(isinstance(value, float) and math.isnan(value) for value in vector):
        vector = ["NaN", 1.0]
    with pytest.raises(errors.MalformedAnswerError):
        _embed([{"index": 0, "embedding": vector}, {"index": 1, "embedding": [1.0, 0.0]}])


def test_a_missing_vector_is_malformed() -> None:
    """A batch of two needs two."""
    with pytest.raises(errors.MalformedAnswerError):
        _embed([{"index": 0, "embedding": [1.0, 0.0]}])


@pytest.mark.parametrize(
    ("name", "body", "models"),
    [
        ("anthropic", {"data": [{"id": "claude-a"}, {"id": None}, 3]}, ("claude-a",)),
        ("openai", {"data": [{"id": "gpt-a"}]}, ("gpt-a",)),
        ("together", [{"id": "bare-a"}], ("bare-a",)),
        ("ollama", {"models": [{"name": "a:latest", "model": "a:latest"}, {"name": "b"}]}, ("a:latest", "b")),
    ],
)
def test_listings_of_models(name: str, body: object, models: tuple[str, ...]) -> None:
    """Each vendor lists in its own form."""
    assert CODECS.chat(_route(name)).parse_models(_response(body), _route(name)) == models


def test_a_refused_listing_is_its_error() -> None:
    """A key that is rejected is known by the listing as well."""
    body = {"error": {"code": "invalid_api_key", "message": "x"}}
    with pytest.raises(errors.KeyRejectedError):
        CODECS.chat(_route("openai")).parse_models(_response(body, 401), _route("openai"))
