"""Reads answers of OpenAI's Chat Completions form, as OpenAI and the vendors of its dialect give them.

The whole answer and the sum of a stream go through the same reading. Of several candidates the first is the answer;
the others are kept as texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from typing_extensions import override

from router.domain.completions import Completion, CompletionPart, Delta, DeltaKind, FinishReason, PartKind, ToolCall
from router.providers.decoding import OK, BaseDecoder, as_stream, is_stream, replayed
from router.providers.dialects import vendor
from router.providers.failures import FailureTable, is_error_body, malformed, success_body
from router.providers.json_reading import (
    Json,
    count_of,
    object_of,
    objects_of,
    optional_text_of,
    rewritten,
    text_of,
    whole_text,
)
from router.providers.openai_usage import cost_nano_usd, usage_from, usage_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.domain.routes import Route
    from router.domain.usage import Usage
    from router.domain.wire import WireResponse
    from router.providers.event_streams import ServerSentEvent

_DONE: Final = b"[DONE]"
_FINISH: Final = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "completed": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.CONTEXT_EXCEEDED,
    "tool_calls": FinishReason.TOOL_CALL,
    "function_call": FinishReason.TOOL_CALL,
    "tool_use": FinishReason.TOOL_CALL,
    "content_filter": FinishReason.CONTENT_FILTER,
    "refusal": FinishReason.REFUSAL,
    "error": FinishReason.ERROR,
    "abort": FinishReason.ERROR,
    "insufficient_system_resource": FinishReason.ERROR,
}
_DETAIL_TEXTS: Final = ("text", "summary")


def parse_completion(response: WireResponse, route: Route, table: FailureTable) -> Completion:
    """Return the completion of a whole answer.

    Raises:
        ProviderError: The status or the body is an error, or the body is no completion.
    """
    if response.status == OK and is_stream(response):
        return replayed(ChatDecoder(as_stream(response), route, table=table), response)
    return completion_of(success_body(response, route, table), response, route)


def completion_of(body: Json, response: WireResponse, route: Route) -> Completion:
    """Return the completion of a whole body.

    Raises:
        MalformedAnswerError: It has no choices.
    """
    choices = sorted(objects_of(body, "choices"), key=lambda choice: count_of(choice, "index"))
    if not choices:
        raise malformed(response, route.provider, "choices")
    message = _message_of(choices[0])
    parts = tuple(_parts(message))
    said = text_of(choices[0], "finish_reason")
    model = text_of(body, "model") or route.model.model_id
    usage = usage_in(body)
    return Completion(
        text=_joined(parts, PartKind.TEXT),
        parts=parts,
        finish_reason=_finish(choices[0], said),
        usage=usage_from(usage, model, object_of(body, "usage_breakdown")),
        model=model,
        tool_calls=tuple(part.tool_call for part in parts if part.tool_call is not None),
        reasoning=_joined(parts, PartKind.REASONING),
        refusal=_refusal(message),
        vendor_finish_reason=said[:64],
        response_id=text_of(body, "id"),
        tier=optional_text_of(body, "service_tier"),
        upstream=optional_text_of(body, "provider"),
        provider_cost_nano_usd=cost_nano_usd(usage) if vendor(route.vendor).reports_cost else None,
        other_texts=tuple(_joined(tuple(_parts(_message_of(other))), PartKind.TEXT) for other in choices[1:]),
    )


def _message_of(choice: Json) -> Json:
    """Return a choice's message; the older text completions say their text beside it instead."""
    message = object_of(choice, "message") or object_of(choice, "delta")
    return message if message or "text" not in choice else {"content": choice.get("text")}


def _finish(choice: Json, said: str) -> FinishReason:
    if is_error_body(choice):
        return FinishReason.ERROR
    return _FINISH.get(said, FinishReason.UNKNOWN)


def _refusal(message: Json) -> str | None:
    refusal = optional_text_of(message, "refusal")
    return whole_text(refusal) if refusal else None


def _parts(message: Json) -> Iterator[CompletionPart]:
    """Yield a message's parts: reasoning, content, refusal, audio, tools."""
    reasoning = _reasoning(message)
    details = message.get("reasoning_details")
    if reasoning or details:
        state = rewritten(details) if details else b""
        yield CompletionPart(kind=PartKind.REASONING, text=whole_text(reasoning), provider_state=state)
    yield from _content(message)
    refusal = _refusal(message)
    if refusal is not None:
        yield CompletionPart(kind=PartKind.REFUSAL, text=refusal)
    for call in _tool_calls(message):
        yield CompletionPart(kind=PartKind.TOOL_CALL, tool_call=call)


def _reasoning(message: Json) -> str:
    plain = text_of(message, "reasoning") or text_of(message, "reasoning_content")
    if plain:
        return plain
    details = objects_of(message, "reasoning_details")
    return "".join(text_of(row, name) for row in details for name in _DETAIL_TEXTS)


def _content(message: Json) -> Iterator[CompletionPart]:
    content = message.get("content")
    if isinstance(content, str):
        if content:
            yield CompletionPart(kind=PartKind.TEXT, text=whole_text(content))
    else:
        for block in objects_of(message, "content"):
            yield _content_part(block)
    audio = object_of(message, "audio")
    if audio:
        # Spoken answers have no content; what was said is their text.
        kind = PartKind.OTHER if content else PartKind.TEXT
        yield CompletionPart(kind=kind, text=whole_text(text_of(audio, "transcript")))


def _content_part(block: Json) -> CompletionPart:
    kind = text_of(block, "type")
    if kind in {"text", "output_text"}:
        return CompletionPart(kind=PartKind.TEXT, text=whole_text(text_of(block, "text")))
    if kind == "refusal":
        return CompletionPart(kind=PartKind.REFUSAL, text=whole_text(text_of(block, "refusal")))
    if kind == "thinking":
        said = block.get("thinking")
        text = said if isinstance(said, str) else "".join(text_of(row, "text") for row in objects_of(block, "thinking"))
        return CompletionPart(kind=PartKind.REASONING, text=whole_text(text))
    return CompletionPart(kind=PartKind.OTHER, provider_state=rewritten(block))


def _tool_calls(message: Json) -> Iterator[ToolCall]:
    for call in objects_of(message, "tool_calls"):
        function, custom = object_of(call, "function"), object_of(call, "custom")
        yield ToolCall(
            call_id=text_of(call, "id"),
            name=text_of(function, "name") or text_of(custom, "name"),
            arguments=_arguments(function.get("arguments")) or text_of(custom, "input"),
        )
    function = object_of(message, "function_call")
    if function:
        yield ToolCall(call_id="", name=text_of(function, "name"), arguments=_arguments(function.get("arguments")))
    for call in objects_of(message, "executed_tools"):
        name = text_of(call, "name") or text_of(call, "type")
        yield ToolCall(call_id="", name=name, arguments=_arguments(call.get("arguments")), is_vendor_run=True)


def _arguments(value: object) -> str:
    """Return arguments as text: most vendors send text, a few an object."""
    if isinstance(value, str):
        return whole_text(value)
    return rewritten(value).decode() if isinstance(value, dict) else ""


def _joined(parts: tuple[CompletionPart, ...], kind: PartKind) -> str:
    return "".join(part.text for part in parts if part.kind is kind)


class ChatDecoder(BaseDecoder):
    """Gathers a stream's chunks into the completion that they add up to."""

    def __init__(self, response: WireResponse, route: Route, *, table: FailureTable) -> None:
        super().__init__(response, route)
        self._table = table
        self._head: Json = {}
        self._last_usage: Json = {}
        self._choices: dict[int, _ChoiceSum] = {}

    @override
    def _take(self, event: ServerSentEvent) -> list[Delta]:
        if event.data.strip() == _DONE:
            self._is_complete = True
            return []
        return super()._take(event)

    @override
    def _take_object(self, name: str, event: Json) -> list[Delta]:
        usage = usage_in(event)
        if usage:
            self._last_usage = usage
        self._head.update({key: value for key, value in event.items() if key in _HEAD and value})
        deltas: list[Delta] = []
        for choice in objects_of(event, "choices"):
            index = count_of(choice, "index")
            summed = self._choices.setdefault(index, _ChoiceSum())
            shown = summed.add(choice)
            # A caller sees one answer grow; further candidates only count.
            deltas.extend(shown if index == 0 else ())
        stopped = text_of(object_of(event, "x_groq"), "error")
        if stopped:
            event = {"error": stopped}
        if name == "error" or is_error_body(event):
            self._failure = self._table.classify_event(event, self._response, self._route.provider)
        return deltas

    @override
    def _usage(self) -> Usage:
        model = text_of(self._head, "model") or self._route.model.model_id
        return usage_from(self._last_usage, model, object_of(self._head, "usage_breakdown"))

    @override
    def _may_end_here(self) -> bool:
        # Some hosts leave the end mark out; a finish reason for every candidate says as much.
        return bool(self._choices) and all(choice.finish_reason for choice in self._choices.values())

    @override
    def _completion(self) -> Completion:
        choices = [summed.whole(index) for index, summed in sorted(self._choices.items())]
        body: Json = {**self._head, "usage": self._last_usage, "choices": choices}
        return completion_of(body, self._response, self._route)

    @override
    def _parse_whole(self, response: WireResponse) -> Completion:
        return parse_completion(response, self._route, self._table)


_HEAD: Final = frozenset({"id", "model", "provider", "service_tier", "usage_breakdown"})
_TEXTS: Final = {
    "content": DeltaKind.TEXT,
    "refusal": DeltaKind.REFUSAL,
    "reasoning": DeltaKind.REASONING,
    "reasoning_content": DeltaKind.REASONING,
}
_PART_INDEX: Final = {DeltaKind.REASONING: 0, DeltaKind.TEXT: 1, DeltaKind.REFUSAL: 2}
_FIRST_TOOL_PART: Final = 3


class _ChoiceSum:
    """One candidate as its deltas add up."""

    def __init__(self) -> None:
        self.finish_reason = ""
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, _CallSum] = {}
        self._keys: dict[int, int] = {}
        self._lists: dict[str, list[object]] = {}
        self._transcript: list[str] = []
        self._error: object = None

    def add(self, choice: Json) -> list[Delta]:
        """Add a chunk's share and return what it shows."""
        delta = _message_of(choice)
        self.finish_reason = text_of(choice, "finish_reason") or self.finish_reason
        self._error = choice.get("error") or self._error
        shown = list(self._add_texts(delta))
        shown.extend(self._add_blocks(delta))
        for name in ("reasoning_details", "executed_tools"):
            self._lists.setdefault(name, []).extend(objects_of(delta, name))
        self._transcript.append(text_of(object_of(delta, "audio"), "transcript"))
        function = object_of(delta, "function_call")
        if function:
            shown.extend(self._add_call(-1, {"function": function}))
        for position, call in enumerate(objects_of(delta, "tool_calls")):
            index = count_of(call, "index") if "index" in call else position
            shown.extend(self._add_call(index, call))
        return shown

    def whole(self, index: int) -> Json:
        """Return the choice in the form of a whole answer."""
        message: Json = {name: "".join(texts) for name, texts in self._texts.items()}
        message.update({name: rows for name, rows in self._lists.items() if rows})
        legacy = self._calls.get(-1)
        if legacy is not None:
            message["function_call"] = legacy.whole()["function"]
        message["tool_calls"] = [call.whole() for key, call in sorted(self._calls.items()) if key >= 0]
        transcript = "".join(self._transcript)
        if transcript:
            message["audio"] = {"transcript": transcript}
        return {"index": index, "finish_reason": self.finish_reason, "message": message, "error": self._error}

    def _add_texts(self, delta: Json) -> Iterator[Delta]:
        for name, kind in _TEXTS.items():
            piece = text_of(delta, name)
            # A host that sends its reasoning under both names means it once.
            if not piece or (name == "reasoning_content" and text_of(delta, "reasoning")):
                continue
            self._texts.setdefault(name, []).append(piece)
            yield Delta(kind=kind, part_index=_PART_INDEX[kind], text=piece)

    def _add_blocks(self, delta: Json) -> Iterator[Delta]:
        for block in objects_of(delta, "content"):
            part = _content_part(block)
            if part.kind is PartKind.TEXT and part.text:
                self._texts.setdefault("content", []).append(part.text)
                yield Delta(kind=DeltaKind.TEXT, part_index=_PART_INDEX[DeltaKind.TEXT], text=part.text)
            elif part.kind is PartKind.REASONING and part.text:
                self._texts.setdefault("reasoning", []).append(part.text)
                yield Delta(kind=DeltaKind.REASONING, part_index=_PART_INDEX[DeltaKind.REASONING], text=part.text)

    def _add_call(self, index: int, call: Json) -> Iterator[Delta]:
        key = self._key(index, text_of(call, "id"))
        part = _FIRST_TOOL_PART + max(key, 0)
        summed = self._calls.setdefault(key, _CallSum())
        was_named = bool(summed.name)
        piece = summed.add(call)
        if summed.name and not was_named:
            yield Delta(kind=DeltaKind.TOOL_START, part_index=part, text=summed.name, call_id=summed.call_id)
        if piece:
            yield Delta(kind=DeltaKind.TOOL_ARGUMENTS, part_index=part, text=piece)

    def _key(self, index: int, call_id: str) -> int:
        """Return where a piece belongs: some hosts give every call index 0, and then a new id begins a new call."""
        key = self._keys.setdefault(index, index)
        known = self._calls.get(key)
        if known is not None and call_id and known.call_id and known.call_id != call_id:
            key = self._keys[index] = max(self._calls) + 1
        return key


class _CallSum:
    """One tool call as its pieces add up."""

    def __init__(self) -> None:
        self.call_id = ""
        self.name = ""
        self._arguments: list[str] = []

    def add(self, call: Json) -> str:
        """Add a piece and return the argument text that it brings."""
        function = object_of(call, "function") or object_of(call, "custom")
        self.call_id = self.call_id or text_of(call, "id")
        self.name = self.name or text_of(function, "name")
        piece = _arguments(function.get("arguments")) or text_of(function, "input")
        self._arguments.append(piece)
        return piece

    def whole(self) -> Json:
        """Return the call in the form of a whole answer."""
        return {"id": self.call_id, "function": {"name": self.name, "arguments": "".join(self._arguments)}}
