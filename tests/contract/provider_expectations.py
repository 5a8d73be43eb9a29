"""What a recorded answer says, read by other means than our codecs: the official SDKs' models and accumulators.

Only the meaning is ours: which of the vendor's words for the end of an answer means what, and that totals include
their parts.
"""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import anthropic.types.beta as anthropic_types
from anthropic._models import construct_type_unchecked as construct_anthropic
from anthropic.lib.streaming._beta_messages import accumulate_event
from openai._models import construct_type_unchecked
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.responses import Response

from catalogue.models import Dialect
from router.domain import errors
from router.domain.completions import FinishReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from openai.types.chat.chat_completion import Choice

    from tests.contract.provider_recordings import Recording

FINISH = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "completed": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "max_output_tokens": FinishReason.LENGTH,
    "length": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALL,
    "tool_calls": FinishReason.TOOL_CALL,
    "function_call": FinishReason.TOOL_CALL,
    "content_filter": FinishReason.CONTENT_FILTER,
    "refusal": FinishReason.REFUSAL,
    "pause_turn": FinishReason.PAUSED,
    "compaction": FinishReason.PAUSED,
    "model_context_window_exceeded": FinishReason.CONTEXT_EXCEEDED,
    "error": FinishReason.ERROR,
    "": FinishReason.UNKNOWN,
}

CALLERS_TOOLS = frozenset({"computer_call", "local_shell_call", "apply_patch_call"})
"""Items of a response that the caller works, beside its functions."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What an answer says."""

    text: str
    finish_reason: FinishReason
    input_tokens: int
    output_tokens: int
    tools: tuple[tuple[str, object], ...] = ()
    is_counted: bool = True


def expected_of(recording: Recording) -> Expected:
    """Return what a successful completion says."""
    readers: dict[Dialect | None, Callable[[Recording], Expected]] = {
        Dialect.ANTHROPIC_MESSAGES: _anthropic,
        Dialect.OPENAI_CHAT: _openai_stream if recording.is_stream else _openai,
        Dialect.OPENAI_RESPONSES: _responses,
        Dialect.OLLAMA: _ollama,
    }
    return readers[recording.dialect](recording)


BY_WORD = {
    "model_not_found": errors.ModelGoneError,
    "model_decommissioned": errors.ModelGoneError,
    "not_found_error": errors.ModelGoneError,
    "tool_use_failed": errors.GenerationRejectedError,
    "json_validate_failed": errors.GenerationRejectedError,
    "insufficient_quota": errors.NoCreditError,
    "billing_error": errors.NoCreditError,
    "invalid_api_key": errors.KeyRejectedError,
    "authentication_error": errors.KeyRejectedError,
    "permission_error": errors.PermissionRefusedError,
    "rate_limit_error": errors.ThrottledError,
    "rate_limit_exceeded": errors.ThrottledError,
    "overloaded_error": errors.ProviderOverloadedError,
    "api_error": errors.ProviderUnavailableError,
    "server_error": errors.ProviderUnavailableError,
    "context_length_exceeded": errors.ContextExceededError,
    "request_too_large": errors.ContextExceededError,
    "content_filter": errors.ContentRefusedError,
    "content_policy_violation": errors.ContentRefusedError,
    "invalid_prompt": errors.ContentRefusedError,
}
VAGUE = frozenset({"api_error", "server_error"})
"""What some hosts call every failure; beside a status that blames the caller, the status counts."""

BY_STATUS = {
    401: errors.KeyRejectedError,
    402: errors.NoCreditError,
    403: errors.PermissionRefusedError,
    404: errors.ModelGoneError,
    408: errors.ProviderUnavailableError,
    413: errors.ContextExceededError,
    429: errors.ThrottledError,
    500: errors.ProviderUnavailableError,
    502: errors.ProviderUnavailableError,
    503: errors.ProviderOverloadedError,
    504: errors.ProviderTimeoutError,
    529: errors.ProviderOverloadedError,
}


def expected_error(recording: Recording) -> type[errors.ProviderError] | None:
    """Return the class of error that an answer is, ``None`` where it is a success.

    Decided from the body's own code and type, then from the status, and not by our tables.
    """
    body = _error_body(recording)
    if body is None:
        return None
    code = body.get("code")
    for word in (code, body.get("type")):
        if word in BY_WORD and not (word in VAGUE and 400 <= recording.status < 500):
            return BY_WORD[word]
    status = code if isinstance(code, int) else recording.status
    if status == 404 and body.get("param") not in {None, "", "model"}:
        # Something that the request names is missing, and not the model.
        return errors.BadRequestError
    return BY_STATUS.get(status, errors.BadRequestError)


def embedding_of(recording: Recording) -> tuple[list[list[float]], int]:
    """Return the vectors of an embedding answer and its input tokens; base64 is read as the SDK reads it."""
    body = json.loads(recording.body)
    if recording.dialect is Dialect.OLLAMA:
        return body["embeddings"], body.get("prompt_eval_count", 0)
    answer = construct_type_unchecked(type_=CreateEmbeddingResponse, value=body)
    vectors = []
    for row in answer.data:
        given = cast("object", row.embedding)
        if isinstance(given, str):
            raw = base64.b64decode(given)
            given = list(struct.unpack(f"<{len(raw) // 4}f", raw))
        vectors.append(cast("list[float]", given))
    return vectors, answer.usage.prompt_tokens


def _error_body(recording: Recording) -> dict[str, Any] | None:
    if recording.status >= 400:
        return _error_of(recording.body)
    if recording.is_stream:
        found = [event["error"] for event in recording.events() if isinstance(event.get("error"), dict)]
        return found[0] if found else None
    error = json.loads(recording.body).get("error")
    return error if isinstance(error, dict) else None


def _error_of(text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        return {}
    error = body.get("error", body) if isinstance(body, dict) else {}
    return error if isinstance(error, dict) else {}


def _anthropic(recording: Recording) -> Expected:
    message = _anthropic_stream(recording) if recording.is_stream else _anthropic_message(json.loads(recording.body))
    usage = message.usage
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    tools = [block for block in message.content if block.type in {"tool_use", "server_tool_use", "mcp_tool_use"}]
    return Expected(
        text="".join(block.text for block in message.content if block.type == "text"),
        finish_reason=FINISH.get(message.stop_reason or "", FinishReason.UNKNOWN),
        input_tokens=usage.input_tokens + cached,
        output_tokens=usage.output_tokens,
        tools=tuple((str(cast("Any", tool).name), cast("Any", tool).input) for tool in tools),
    )


def _anthropic_message(body: dict[str, Any]) -> anthropic_types.BetaMessage:
    return construct_anthropic(type_=anthropic_types.BetaMessage, value=body)


def _anthropic_stream(recording: Recording) -> anthropic_types.BetaMessage:
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in recording.events():
        if event["type"] == "ping":
            continue
        snapshot = accumulate_event(
            event=cast("Any", event), current_snapshot=snapshot, json_bufs=buffers, request_headers=cast("Any", {})
        )
    return cast("anthropic_types.BetaMessage", snapshot)


def _openai(recording: Recording) -> Expected:
    body = construct_type_unchecked(type_=ChatCompletion, value=json.loads(recording.body))
    choice = min(body.choices, key=lambda choice: choice.index)
    message = cast("ChatCompletionMessage | None", getattr(choice, "message", None)) or _text_message(choice)
    calls = [_called(call) for call in message.tool_calls or []]
    if message.function_call:
        calls.append((message.function_call.name, message.function_call.arguments))
    return Expected(
        text=_content(message),
        finish_reason=FINISH.get(cast("str", choice.finish_reason), FinishReason.UNKNOWN),
        input_tokens=body.usage.prompt_tokens if body.usage else 0,
        output_tokens=body.usage.completion_tokens if body.usage else 0,
        tools=tuple((name, _loads(arguments)) for name, arguments in calls),
        is_counted=body.usage is not None,
    )


def _content(message: ChatCompletionMessage) -> str:
    """Return the words of a message: its text, its text parts, or what was spoken."""
    content = cast("Any", message.content)
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if part.get("type") == "text")
    return content or (message.audio.transcript if message.audio else "")


def _called(call: Any) -> tuple[str, str]:
    if call.type == "custom":
        return call.custom.name, call.custom.input
    return call.function.name, call.function.arguments


def _text_message(choice: Choice) -> ChatCompletionMessage:
    """Return the message that an older text completion amounts to."""
    return ChatCompletionMessage(role="assistant", content=cast("Any", choice).text)


def _openai_stream(recording: Recording) -> Expected:
    """Add up the chunks as the API reference says: content is appended, arguments by index, the last usage counts."""
    text, finish = "", ""
    usage: dict[str, Any] = {}
    calls: dict[int, list[str]] = {}
    for event in recording.events():
        usage = event.get("usage") or (event.get("x_groq") or {}).get("usage") or usage
        chunk = construct_type_unchecked(type_=ChatCompletionChunk, value=event)
        for choice in chunk.choices or []:
            if choice.index != 0:
                continue
            delta: Any = getattr(choice, "delta", None)
            text += (delta.content if delta else cast("Any", choice).text) or ""
            finish = choice.finish_reason or finish
            _add_calls(calls, delta)
    return Expected(
        text=text,
        finish_reason=FINISH.get(finish, FinishReason.UNKNOWN),
        input_tokens=usage.get("prompt_tokens", 0),
        output_tokens=usage.get("completion_tokens", 0),
        tools=tuple((name, _loads(arguments)) for _, (name, arguments) in sorted(calls.items())),
        is_counted=bool(usage),
    )


def _add_calls(calls: dict[int, list[str]], delta: Any) -> None:
    pieces = [(call.index, call.function) for call in (delta.tool_calls if delta else None) or []]
    legacy = getattr(delta, "function_call", None)
    if legacy:
        pieces.append((-1, legacy))
    for index, function in pieces:
        name_and_arguments = calls.setdefault(index, ["", ""])
        if function:
            name_and_arguments[0] += function.name or ""
            name_and_arguments[1] += function.arguments or ""


def _responses(recording: Recording) -> Expected:
    if recording.is_stream:
        ends = ("response.completed", "response.incomplete")
        value = next(event["response"] for event in reversed(recording.events()) if event["type"] in ends)
    else:
        value = json.loads(recording.body)
    body = construct_type_unchecked(type_=Response, value=value)
    calls = [item for item in body.output if item.type in {"function_call", "custom_tool_call"}]
    waits = bool(calls) or any(item.type in CALLERS_TOOLS for item in body.output)
    reason = body.incomplete_details.reason if body.incomplete_details else None
    finish = FINISH.get(reason or body.status or "", FinishReason.UNKNOWN)
    return Expected(
        text=body.output_text,
        finish_reason=FinishReason.TOOL_CALL if waits and finish is FinishReason.STOP else finish,
        input_tokens=body.usage.input_tokens if body.usage else 0,
        output_tokens=body.usage.output_tokens if body.usage else 0,
        tools=tuple((call.name, _written(call)) for call in calls),
        is_counted=body.usage is not None,
    )


def _written(call: Any) -> object:
    """Return what the model wrote: JSON for a function, any text for a custom tool."""
    return _loads(call.arguments if call.type == "function_call" else call.input)


def _ollama(recording: Recording) -> Expected:
    rows = recording.events() if recording.is_stream else [json.loads(recording.body)]
    last = rows[-1]
    calls = [call["function"] for row in rows for call in row.get("message", {}).get("tool_calls") or []]
    return Expected(
        text="".join(row.get("response") or row.get("message", {}).get("content", "") for row in rows),
        # Versions before done reasons say only that they are done.
        finish_reason=FINISH.get(last.get("done_reason", "stop"), FinishReason.UNKNOWN),
        input_tokens=last.get("prompt_eval_count", 0),
        output_tokens=last.get("eval_count", 0),
        tools=tuple((call["name"], call["arguments"]) for call in calls),
    )


def _loads(arguments: str) -> object:
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments
