"""What streams do at their worst, in every dialect: cut, broken, failing half-way, or not streaming at all."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogue.models import Dialect, Model
from router.domain import errors
from router.domain.completions import Completion, DeltaKind, FinishReason
from router.domain.routes import Route
from router.domain.usage import UsageFlag
from router.domain.wire import WireResponse
from router.providers.registry import Codecs

if TYPE_CHECKING:
    from router.domain.codecs import StreamDecoder
    from router.domain.completions import Delta

NOW = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
CODECS = Codecs()
EVENT_STREAM = {"content-type": "text/event-stream; charset=utf-8"}
ROUTES = {
    "anthropic": Dialect.ANTHROPIC_MESSAGES,
    "openai": Dialect.OPENAI_CHAT,
    "responses": Dialect.OPENAI_RESPONSES,
    "ollama": Dialect.OLLAMA,
}


def _route(name: str) -> Route:
    provider = "openai" if name == "responses" else name
    return Route(
        provider=provider,
        dialect=ROUTES[name],
        base_url="https://provider.test",
        model=Model(provider=provider, model_id="m"),
    )


def _events(*events: dict[str, Any], ending: bytes = b"") -> bytes:
    return b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events) + ending


def _lines(*events: dict[str, Any]) -> bytes:
    return b"".join(orjson.dumps(event) + b"\n" for event in events)


def _chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "c", "model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


RESPONSE = {
    "id": "r",
    "status": "completed",
    "model": "m-1",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "Blue."}]}],
    "usage": {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13},
}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
WHOLE = {
    "anthropic": _events(
        {
            "type": "message_start",
            "message": {"id": "a", "model": "m-1", "content": [], "usage": {"input_tokens": 9, "output_tokens": 1}},
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Bl"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "ue."}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}},
        {"type": "message_stop"},
    ),
    "openai": _events(
        _chunk({"role": "assistant", "content": "Bl"}),
        _chunk({"content": "ue."}),
        _chunk({}, "stop"),
        {"id": "c", "model": "m-1", "choices": [], "usage": USAGE},
        ending=b"data: [DONE]\n\n",
    ),
    "responses": _events(
        {"type": "response.created", "response": {"id": "r", "status": "in_progress", "output": []}},
        {"type": "response.output_text.delta", "output_index": 0, "delta": "Bl"},
        {"type": "response.output_text.delta", "output_index": 0, "delta": "ue."},
        {"type": "response.completed", "response": RESPONSE},
    ),
    "ollama": _lines(
        {"model": "m-1", "message": {"content": "Bl"}, "done": False},
        {"model": "m-1", "message": {"content": "ue."}, "done": False},
        {
            "model": "m-1",
            "message": {"content": ""},
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 9,
            "eval_count": 4,
        },
    ),
}


def _decoder(name: str, headers: dict[str, str] | None = None, status: int = 200) -> StreamDecoder:
    response = WireResponse(status=status, headers=headers or EVENT_STREAM, body=b"", receive_time=NOW)
    return CODECS.chat(_route(name)).decode_stream(response, _route(name))


def _feed(decoder: StreamDecoder, data: bytes, size: int) -> list[Delta]:
    return [delta for start in range(0, len(data), size) for delta in decoder.feed(data[start : start + size])]


@pytest.mark.parametrize("name", ROUTES)
@given(size=st.integers(min_value=1, max_value=400))
@settings(max_examples=25)
def test_pieces_of_any_size_give_the_same_answer(name: str, size: int) -> None:
    """Deltas add up to the text, and the answer is the whole's."""
    decoder = _decoder(name)
    deltas = _feed(decoder, WHOLE[name], size)
    found = decoder.finish()
    assert "".join(delta.text for delta in deltas if delta.kind is DeltaKind.TEXT) == found.text == "Blue."
    assert found.finish_reason is FinishReason.STOP
    assert (found.usage.billable.input_tokens, found.usage.billable.output_tokens) == (9, 4)
    assert found.usage.flags == frozenset()
    assert found.model == "m-1"
    assert decoder.received_text_bytes == 5


@pytest.mark.parametrize("name", ROUTES)
def test_a_stream_cut_anywhere_is_truncated_or_whole(name: str) -> None:
    """Wherever the connection ends: the whole answer, or an error that says that it may have been billed."""
    data = WHOLE[name]
    ends = [_ending(name, data[:end]) for end in range(len(data))]
    cut = [end for end in ends if isinstance(end, errors.AnswerTruncatedError)]
    whole = [end for end in ends if isinstance(end, Completion)]
    assert len(cut) + len(whole) == len(ends)
    assert len(whole) < len(data) / 2
    assert all(error.may_have_been_billed and error.usage is not None for error in cut)
    assert all(error.usage.flags & {UsageFlag.MISSING, UsageFlag.PARTIAL} for error in cut if error.usage)
    assert {(found.text, found.finish_reason) for found in whole} <= {("Blue.", FinishReason.STOP)}


def _ending(name: str, data: bytes) -> Completion | errors.ProviderError:
    decoder = _decoder(name)
    decoder.feed(data)
    try:
        return decoder.finish()
    except errors.ProviderError as error:
        return error


@pytest.mark.parametrize("name", ROUTES)
def test_what_comes_after_the_end_is_not_read(name: str) -> None:
    """The end mark ends it, so that the connection can be given back."""
    decoder = _decoder(name)
    decoder.feed(WHOLE[name])
    assert decoder.is_complete
    assert decoder.feed(WHOLE[name]) == []
    assert decoder.finish().text == "Blue."


BROKEN: dict[str, dict[str, Any]] = {
    "anthropic": {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    "openai": {"error": {"type": "server_error", "code": None, "message": "The server had an error"}},
    "responses": {"type": "error", "code": "server_error", "message": "The server had an error"},
    "ollama": {"error": "an error was encountered while running the model"},
}


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("size", [1, 10_000])
def test_an_error_half_way_ends_the_stream_with_what_was_consumed(name: str, size: int) -> None:
    """The error is raised at the end, carries the usage seen, and nothing after it is read."""
    half = WHOLE[name][: WHOLE[name].index(b"ue.")]
    half = half[: half.rindex(b"\n") + 1]
    error = _lines(BROKEN[name]) if name == "ollama" else _events(BROKEN[name])
    decoder = _decoder(name)
    shown = _feed(decoder, half + error + WHOLE[name], size)
    assert [delta.text for delta in shown if delta.kind is DeltaKind.TEXT] == ["Bl"]
    with pytest.raises(errors.ProviderError) as caught:
        decoder.finish()
    assert isinstance(caught.value, errors.ProviderUnavailableError | errors.ProviderOverloadedError)
    assert caught.value.may_have_been_billed
    assert caught.value.usage is not None
    assert decoder.failure is caught.value


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("junk", [b"data: {broken\n\n", b"data: <html>\n\n", b"data: [1]\n\n"])
def test_an_event_that_is_no_json_is_malformed(name: str, junk: bytes) -> None:
    """Not a crash, and not an empty answer."""
    decoder = _decoder(name)
    decoder.feed(junk.removeprefix(b"data: ") if name == "ollama" else junk)
    with pytest.raises(errors.MalformedAnswerError) as caught:
        decoder.finish()
    assert caught.value.may_have_been_billed


@pytest.mark.parametrize("name", ROUTES)
def test_an_error_document_in_place_of_a_stream_is_that_error(name: str) -> None:
    """Some hosts answer a streaming request with 200 and one JSON document that is an error."""
    body = orjson.dumps({"error": {"type": "x", "code": "insufficient_quota", "message": "Overloaded"}})
    decoder = _decoder(name, {"content-type": "application/json"})
    assert _feed(decoder, body, 5) == []
    with pytest.raises(errors.ProviderError) as caught:
        decoder.finish()
    assert not isinstance(caught.value, errors.MalformedAnswerError)


def test_a_whole_answer_in_place_of_a_stream_is_that_answer() -> None:
    """A host that does not stream is nevertheless read."""
    decoder = _decoder("responses", {"content-type": "application/json; charset=utf-8"})
    decoder.feed(orjson.dumps(RESPONSE))
    assert decoder.finish().text == "Blue."


@pytest.mark.parametrize("name", ROUTES)
def test_an_empty_stream_is_truncated(name: str) -> None:
    """Nothing at all is no answer."""
    with pytest.raises(errors.AnswerTruncatedError):
        _decoder(name).finish()


def test_a_failed_response_is_its_error_with_its_usage() -> None:
    """Responses says its failure in its last event."""
    failed = {**RESPONSE, "status": "failed", "error": {"code": "rate_limit_exceeded", "message": "Slow"}}
    decoder = _decoder("responses")
    decoder.feed(_events({"type": "response.failed", "response": failed}))
    with pytest.raises(errors.ThrottledError) as caught:
        decoder.finish()
    assert caught.value.usage is not None
    assert caught.value.usage.billable.input_tokens == 9


def test_the_last_cumulative_count_is_known_before_the_end() -> None:
    """A caller that hangs up is settled by what was seen so far."""
    decoder = _decoder("anthropic")
    decoder.feed(WHOLE["anthropic"][: WHOLE["anthropic"].index(b"message_delta") - 20])
    assert decoder.usage.billable.input_tokens == 9
    assert UsageFlag.PARTIAL in decoder.usage.flags


def test_a_huge_event_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One event cannot fill the memory."""
    monkeypatch.setattr("router.providers.event_streams.EVENT_BYTES_MAX", 100)
    decoder = _decoder("openai")
    assert decoder.feed(b"data: " + b"x" * 500) == []
    with pytest.raises(errors.MalformedAnswerError):
        decoder.finish()


@pytest.mark.parametrize("name", ROUTES)
def test_a_stream_in_place_of_a_whole_answer_is_that_answer(name: str) -> None:
    """Some hosts stream although they were not asked to, and call it JSON."""
    response = WireResponse(
        status=200, headers={"content-type": "application/json"}, body=WHOLE[name], receive_time=NOW
    )
    assert CODECS.chat(_route(name)).parse_chat(response, _route(name)).text == "Blue."
    decoder = _decoder(name, {"content-type": "application/json"})
    _feed(decoder, WHOLE[name], 11)
    assert decoder.finish().text == "Blue."


def test_a_stream_that_groq_stops_early_is_an_error() -> None:
    """It says why beside the choices."""
    stopped = {"id": "c", "model": "m", "choices": [], "x_groq": {"id": "r", "error": "over capacity"}}
    decoder = _decoder("openai")
    decoder.feed(_events(_chunk({"content": "Bl"}), stopped, ending=b"data: [DONE]\n\n"))
    with pytest.raises(errors.ProviderUnavailableError) as caught:
        decoder.finish()
    assert caught.value.may_have_been_billed
