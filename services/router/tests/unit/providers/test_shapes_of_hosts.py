"""Shapes that some hosts give to errors, counts and documents, where their dialect's inventor has another."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from catalogue.models import Dialect, Model
from router.domain import errors
from router.domain.completions import FinishReason
from router.domain.embeddings import EmbedCall
from router.domain.routes import Route
from router.domain.wire import WireResponse
from router.providers.registry import Codecs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.domain.completions import Completion

NOW = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
CODECS = Codecs()
DIALECTS = {
    "anthropic": ("anthropic", Dialect.ANTHROPIC_MESSAGES),
    "responses": ("openai", Dialect.OPENAI_RESPONSES),
    "ollama": ("ollama", Dialect.OLLAMA),
    "ollama as openai": ("ollama", Dialect.OPENAI_CHAT),
}


def _route(name: str) -> Route:
    provider, dialect = DIALECTS.get(name, (name, Dialect.OPENAI_CHAT))
    model = Model(provider=provider, model_id="m")
    return Route(provider=provider, dialect=dialect, base_url="https://provider.test", model=model)


def _response(status: int, body: object, headers: Mapping[str, str] | None = None) -> WireResponse:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return WireResponse(status=status, headers=headers or {}, body=data, receive_time=NOW)


def _classify(name: str, status: int, body: object, headers: Mapping[str, str] | None = None) -> errors.ProviderError:
    return CODECS.chat(_route(name)).classify(_response(status, body, headers), _route(name))


def _parse(name: str, body: object) -> Completion:
    return CODECS.chat(_route(name)).parse_chat(_response(200, body), _route(name))


def _error(message: str, kind: str | None = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _upstream(raw: object) -> dict[str, Any]:
    return {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": raw}}}


def _text(body: object) -> str:
    return orjson.dumps(body).decode()


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (401, "unauthorized", errors.KeyRejectedError),
        (403, "no", errors.PermissionRefusedError),
        (404, 'model "x" not found, try pulling it first', errors.ModelGoneError),
        (400, "x does not support tools", errors.BadRequestError),
        (429, "you have reached your weekly usage limit, please upgrade", errors.DailyQuotaError),
        (429, "slow", errors.ThrottledError),
        (500, "llama runner process has terminated", errors.ProviderUnavailableError),
        (504, "upstream", errors.ProviderTimeoutError),
    ],
)
def test_a_host_that_calls_everything_an_api_error_is_judged_by_its_status(
    status: int, message: str, expected: type[errors.ProviderError]
) -> None:
    """Ollama's route in OpenAI's dialect has one type for nearly every failure."""
    error = _classify("ollama as openai", status, _error(message, "api_error"))
    assert type(error) is expected, error.rule


@pytest.mark.parametrize(
    ("name", "message", "kind"),
    [
        ("openai", "Item with id 'rs_1' not found. Items are not kept.", "invalid_request_error"),
        ("responses", "Vector store with id ['vs_1'] not found.", "invalid_request_error"),
        ("openai", "No such File object: file-1", "invalid_request_error"),
        ("openai", "Invalid URL (POST /v1/v1/chat/completions)", "invalid_request_error"),
        ("anthropic", "File not found: file_1", "not_found_error"),
        ("anthropic", "Container container_1 not found", "not_found_error"),
    ],
)
def test_something_else_that_is_missing_does_not_mean_that_the_model_is_gone(
    name: str, message: str, kind: str
) -> None:
    """A mapping is not to be given up because a file, an item or a path is missing."""
    error = _classify(name, 404, _error(message, kind))
    assert type(error) is errors.BadRequestError, error.rule


@pytest.mark.parametrize(
    ("name", "status", "body", "expected"),
    [
        ("openai", 404, _error("The model `x` does not exist", code="model_not_found"), errors.ModelGoneError),
        ("openai", 404, _error("This is not a chat model"), errors.ModelGoneError),
        ("openai", 400, _error("invalid model ID"), errors.ModelGoneError),
        ("groq", 400, _error("The model needs terms accepted", code="model_terms_required"), errors.ModelGoneError),
        ("anthropic", 404, _error("model: claude-x", "not_found_error"), errors.ModelGoneError),
        ("groq", 503, _error("m is currently over capacity.", "internal_server_error"), errors.ProviderOverloadedError),
        (
            "openrouter",
            400,
            {"error": {"message": "This endpoint's maximum context length is 8 tokens.", "code": 400}},
            errors.ContextExceededError,
        ),
        (
            "fireworks",
            400,
            _error("The prompt is too long: 140000, model maximum context length: 131071"),
            errors.ContextExceededError,
        ),
        (
            "openai",
            400,
            {
                "error": {
                    "message": "The response was filtered",
                    "type": None,
                    "code": "content_filter",
                    "status": 400,
                    "innererror": {"code": "ResponsibleAIPolicyViolation"},
                }
            },
            errors.ContentRefusedError,
        ),
        ("openai_compatible", 401, {"statusCode": 401, "message": "Unauthorized."}, errors.KeyRejectedError),
        ("openai_compatible", 422, {"detail": [{"loc": ["body"], "msg": "required"}]}, errors.BadRequestError),
    ],
)
def test_the_meaning_of_what_hosts_say_in_their_own_way(
    name: str, status: int, body: dict[str, Any], expected: type[errors.ProviderError]
) -> None:
    """Models gone, contexts exceeded, capacity, filters and gateways, each in the words of its host."""
    error = _classify(name, status, body)
    assert type(error) is expected, error.rule


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (_text(_error("long", code="context_length_exceeded")), errors.ContextExceededError),
        (_error("This model's maximum context length is 8 tokens."), errors.ContextExceededError),
        ("prompt is too long: 9 tokens > 8 maximum", errors.ContextExceededError),
        (_text(_error("filtered", code="content_filter")), errors.ContentRefusedError),
        (_text(_error("Incorrect API key provided", code="invalid_api_key")), errors.BadRequestError),
        (_text(_error("You exceeded your current quota", code="insufficient_quota")), errors.BadRequestError),
        ("", errors.BadRequestError),
        (None, errors.BadRequestError),
        ("[[1]]", errors.BadRequestError),
    ],
)
def test_openrouters_upstream_speaks_for_content_and_never_for_the_key(
    raw: object, expected: type[errors.ProviderError]
) -> None:
    """An upstream's word on a key or on credit is about OpenRouter's own."""
    error = _classify("openrouter", 400, _upstream(raw))
    assert type(error) is expected, error.rule
    assert error.key_state is None


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("image_content_policy_violation", errors.ContentRefusedError),
        ("misalignment_policy_violation", errors.ContentRefusedError),
        ("invalid_base64_image", errors.BadRequestError),
        ("image_too_large", errors.BadRequestError),
        ("data_residency_mismatch", errors.PermissionRefusedError),
        ("vector_store_timeout", errors.ProviderUnavailableError),
        ("server_error", errors.ProviderUnavailableError),
    ],
)
def test_a_failed_response_names_only_a_code(code: str, expected: type[errors.ProviderError]) -> None:
    """An image that cannot be read is not worth another try; a failure of the host is."""
    body = {"id": "r", "status": "failed", "error": {"code": code, "message": "x"}, "output": []}
    with pytest.raises(expected) as caught:
        _parse("responses", body)
    assert type(caught.value) is expected, caught.value.rule


@pytest.mark.parametrize("name", ["anthropic", "openai", "responses", "ollama"])
@pytest.mark.parametrize(
    ("status", "kind", "body", "expected"),
    [
        (502, "text/html", b"<html>Bad gateway</html>", errors.ProviderUnavailableError),
        (503, "", b"", errors.ProviderOverloadedError),
        (429, "text/plain", b"slow down", errors.ThrottledError),
        (401, "text/event-stream", b"", errors.KeyRejectedError),
        (
            429,
            "text/event-stream",
            b'event: error\ndata: {"type":"error","error":{"type":"rate_limit_error","message":"x"}}\n\n',
            errors.ThrottledError,
        ),
    ],
)
def test_a_refused_stream_is_its_error_and_was_not_billed(
    name: str, status: int, kind: str, body: bytes, expected: type[errors.ProviderError]
) -> None:
    """A decoder that is given an error's status reads a document, a page or nothing, and never a cut stream."""
    head = _response(status, b"", {"content-type": kind})
    decoder = CODECS.chat(_route(name)).decode_stream(head, _route(name))
    for byte in body:
        assert decoder.feed(bytes([byte])) == []
    with pytest.raises(expected) as caught:
        decoder.finish()
    assert type(caught.value) is expected, caught.value.rule
    assert not caught.value.may_have_been_billed


@pytest.mark.parametrize("step", [1, 1_000])
def test_an_error_spread_over_lines_inside_a_stream_is_read(step: int) -> None:
    """Written for people, without a field's name in front."""
    body = b'{\n  "error": {\n    "message": "Rate limit reached",\n    "code": "rate_limit_exceeded"\n  }\n}\n'
    head = _response(200, b"", {"content-type": "text/event-stream"})
    decoder = CODECS.chat(_route("openai")).decode_stream(head, _route("openai"))
    for start in range(0, len(body), step):
        decoder.feed(body[start : start + step])
    with pytest.raises(errors.ThrottledError):
        decoder.finish()


def test_text_is_counted_in_bytes() -> None:
    """An estimate by characters would put three quarters of a Chinese answer on the house."""
    decoder = CODECS.chat(_route("openai")).decode_stream(_response(200, b""), _route("openai"))
    decoder.feed(b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": {"content": "蓝色的天"}}]}) + b"\n\n")
    assert decoder.received_text_bytes == len("蓝色的天".encode())


def test_two_messages_in_one_stream_are_none() -> None:
    """A relay that asks again half-way must not make one answer of two halves; what was consumed is known."""
    start = {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 9, "output_tokens": 1}}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Allow"}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}}
    decoder = CODECS.chat(_route("anthropic")).decode_stream(_response(200, b""), _route("anthropic"))
    for event in (start, block, start, block, end, {"type": "message_stop"}):
        decoder.feed(b"data: " + orjson.dumps(event) + b"\n\n")
    with pytest.raises(errors.MalformedAnswerError) as caught:
        decoder.finish()
    assert caught.value.usage is not None
    assert caught.value.usage.billable.input_tokens == 9


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("max_output_tokens", FinishReason.LENGTH),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("max_messages", FinishReason.PAUSED),
        ("steered", FinishReason.PAUSED),
        ("something_of_tomorrow", FinishReason.UNKNOWN),
    ],
)
def test_why_a_response_is_incomplete(reason: str, finish: FinishReason) -> None:
    """All of OpenAI's reasons, and one that is not known yet."""
    body = {"status": "incomplete", "incomplete_details": {"reason": reason}, "output": []}
    assert _parse("responses", body).finish_reason is finish


def test_a_stream_may_begin_with_an_id() -> None:
    """A document's reader knows a stream by any of the fields that an event can have."""
    chunk = {"model": "m", "choices": [{"index": 0, "delta": {"content": "Blue."}, "finish_reason": "stop"}]}
    body = b"id: 1\nretry: 9\ndata: " + orjson.dumps(chunk) + b"\n\ndata: [DONE]\n\n"
    assert _parse("openai", body).text == "Blue."


def test_lines_of_json_may_end_in_crlf() -> None:
    """Ollama behind a proxy that ends lines in its own way."""
    first = {"message": {"content": "Bl"}, "done": False}
    last = {"message": {"content": "ue."}, "done": True, "done_reason": "stop", "eval_count": 2}
    found = _parse("ollama", orjson.dumps(first) + b"\r\n" + orjson.dumps(last) + b"\r\n")
    assert (found.text, found.usage.processed.output_tokens) == ("Blue.", 2)


@pytest.mark.parametrize(
    ("usage", "outputs", "reasoning", "cached"),
    [
        ({"total_tokens": 141, "completion_tokens_details": {"reasoning_tokens": 100}}, 109, 100, 0),
        ({"total_tokens": 41, "completion_tokens_details": {"reasoning_tokens": 5}}, 9, 5, 0),
        ({"completion_tokens_details": {"reasoning_tokens": 5}}, 9, 5, 0),
        ({"total_tokens": 41, "cached_tokens": 30}, 9, 0, 30),
        ({"total_tokens": 41, "prompt_cache_hit_tokens": 20, "prompt_cache_miss_tokens": 12}, 9, 0, 20),
        ({"total_tokens": 41, "prompt_tokens_details": {"cached_tokens": 10}, "cached_tokens": 10}, 9, 0, 10),
    ],
)
def test_parts_are_where_each_host_puts_them(usage: dict[str, Any], outputs: int, reasoning: int, cached: int) -> None:
    """Reasoning beside the completion is known by the total, and a cache read by any of its names."""
    choice = {"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}
    whole = {"prompt_tokens": 32, "completion_tokens": 9, **usage}
    found = _parse("openai_compatible", {"model": "m", "choices": [choice], "usage": whole}).usage
    counts = found.billable
    assert (counts.input_tokens, counts.output_tokens) == (32, outputs)
    assert (counts.reasoning_tokens, counts.cache_read_tokens) == (reasoning, cached)
    assert not found.flags


@pytest.mark.parametrize("kind", ["function_call", "computer_call", "local_shell_call", "apply_patch_call"])
def test_a_response_waits_for_every_tool_that_the_caller_runs(kind: str) -> None:
    """A screen, a shell and a patch are the caller's to work, like a function."""
    item = {"type": kind, "call_id": "c", "name": "f", "arguments": "{}", "action": {"type": "screenshot"}}
    found = _parse("responses", {"status": "completed", "output": [item]})
    assert found.finish_reason is FinishReason.TOOL_CALL
    assert not found.tool_calls[0].is_vendor_run


def test_ollamas_older_route_answers_one_vector() -> None:
    """Without a list around it and without a count."""
    call = EmbedCall(texts=("t",), dimensions=2)
    response = _response(200, {"embedding": [3.0, 4.0]})
    result = CODECS.embedding(_route("ollama")).parse_embed(response, call, _route("ollama"))
    assert list(result.vectors[0]) == pytest.approx([0.6, 0.8])
    assert result.usage.is_missing


def test_a_wish_is_read_whatever_the_case_of_its_header() -> None:
    """A transport hands names on as the server wrote them."""
    headers = CIMultiDictProxy(CIMultiDict({"X-RateLimit-Remaining-Requests": "0", "X-RateLimit-Reset-Requests": "9s"}))
    assert _classify("groq", 429, _error("x"), headers).retry_after == timedelta(seconds=9)


def test_a_wish_in_words_is_read() -> None:
    """Azure says it in a sentence."""
    body = {"error": {"code": "429", "message": "Calls have exceeded the limit. Please retry after 6 seconds."}}
    assert _classify("openai_compatible", 429, body).retry_after == timedelta(seconds=6)
