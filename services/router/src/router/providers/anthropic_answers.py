"""Reads Anthropic's answers: whole messages, streams of events, and their usage.

Input tokens as Anthropic counts them leave out what the cache gave or took, so the normalized input is their sum.
Tokens of advisors and compactions are billed beside the answer's own and stand only in ``usage.iterations``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from typing_extensions import override

from router.domain.completions import (
    Completion,
    CompletionPart,
    Delta,
    DeltaKind,
    FinishReason,
    PartKind,
    ToolCall,
)
from router.domain.usage import ModelUsage, TokenCounts, Usage, missing_usage, usage_of
from router.providers.decoding import OK, BaseDecoder, as_stream, is_stream, replayed
from router.providers.failure_tables import ANTHROPIC
from router.providers.failures import malformed, success_body
from router.providers.json_reading import (
    Json,
    count_of,
    object_of,
    objects_of,
    optional_count_of,
    optional_text_of,
    rewritten,
    text_of,
    whole_text,
)

if TYPE_CHECKING:
    from router.domain.routes import Route
    from router.domain.wire import WireResponse

STREAMED_INPUT: Final = "_streamed_input"
"""Where a streamed tool call's argument text is kept in its block; no vendor field begins with an underscore."""

_FINISH: Final = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALL,
    "pause_turn": FinishReason.PAUSED,
    "compaction": FinishReason.PAUSED,
    "refusal": FinishReason.REFUSAL,
    "model_context_window_exceeded": FinishReason.CONTEXT_EXCEEDED,
}
_TOOL_BLOCKS: Final = {"tool_use": False, "server_tool_use": True, "mcp_tool_use": True}
_DELTAS: Final[dict[str, tuple[str, str, DeltaKind | None]]] = {
    "text_delta": ("text", "text", DeltaKind.TEXT),
    "thinking_delta": ("thinking", "thinking", DeltaKind.REASONING),
    "signature_delta": ("signature", "signature", None),
    "input_json_delta": ("partial_json", STREAMED_INPUT, DeltaKind.TOOL_ARGUMENTS),
}
"""A delta's field, the block's field that it extends, and how it is shown."""

_OWN_ITERATIONS: Final = frozenset({"message", "fallback_message"})


def parse_message(response: WireResponse, route: Route) -> Completion:
    """Return the completion of a whole answer.

    Raises:
        ProviderError: The status or the body is an error, or the body is no message.
    """
    if response.status == OK and is_stream(response):
        return replayed(AnthropicDecoder(as_stream(response), route), response)
    return completion_of(success_body(response, route, ANTHROPIC), response, route)


def completion_of(body: Json, response: WireResponse, route: Route) -> Completion:
    """Return the completion of a whole message.

    Raises:
        MalformedAnswerError: It is no message.
    """
    if not isinstance(body.get("content"), list):
        raise malformed(response, route.provider, "message")
    parts = tuple(_part(block) for block in objects_of(body, "content"))
    model = text_of(body, "model") or route.model.model_id
    said = text_of(body, "stop_reason")
    finish = _FINISH.get(said, FinishReason.UNKNOWN)
    return Completion(
        text=_joined(parts, PartKind.TEXT),
        parts=parts,
        finish_reason=finish,
        usage=usage_from(object_of(body, "usage"), model),
        model=model,
        tool_calls=tuple(part.tool_call for part in parts if part.tool_call is not None),
        reasoning=_joined(parts, PartKind.REASONING),
        refusal=text_of(object_of(body, "stop_details"), "explanation") if finish is FinishReason.REFUSAL else None,
        vendor_finish_reason=said[:64],
        response_id=text_of(body, "id"),
        tier=optional_text_of(object_of(body, "usage"), "service_tier"),
        region=optional_text_of(object_of(body, "usage"), "inference_geo"),
    )


def usage_from(usage: Json, model: str) -> Usage:
    """Return the normalized usage: the answer's own counts, and beside them what other iterations were billed."""
    if optional_count_of(usage, "output_tokens") is None and optional_count_of(usage, "input_tokens") is None:
        return missing_usage(model)
    own = usage_of(model, _counts(usage), web_searches=_web_searches(usage))
    extra = [
        ModelUsage(model=text_of(item, "model") or model, counts=_counts(item).clamped()[0])
        for item in _beside(usage, model)
    ]
    if not extra:
        return own
    billable = own.billable
    for part in extra:
        billable = billable.plus(part.counts)
    return Usage(
        processed=own.processed,
        billable=billable,
        parts=(*own.parts, *extra),
        web_searches=own.web_searches,
        flags=own.flags,
    )


def _beside(usage: Json, model: str) -> list[Json]:
    """Return the iterations that the answer's own counts leave out.

    Advisors and compactions always are; a model that declined before a fallback answered is, unless the iterations of
    messages add up to the answer's counts.
    """
    items = objects_of(usage, "iterations")
    own = [item for item in items if text_of(item, "type") in _OWN_ITERATIONS]
    declined = [item for item in own if text_of(item, "model") not in {"", model}]
    beside = [item for item in items if text_of(item, "type") not in _OWN_ITERATIONS]
    is_summed = sum(_counts(item).total_tokens for item in own) == _counts(usage).total_tokens
    return beside if is_summed else [*declined, *beside]


def _counts(usage: Json) -> TokenCounts:
    written = count_of(usage, "cache_creation_input_tokens")
    # The split by lifetime may be missing or stale in a stream; what it does not explain is a write of 5 minutes.
    written_1h = min(count_of(object_of(usage, "cache_creation"), "ephemeral_1h_input_tokens"), written)
    read = count_of(usage, "cache_read_input_tokens")
    return TokenCounts(
        input_tokens=count_of(usage, "input_tokens") + written + read,
        output_tokens=count_of(usage, "output_tokens"),
        cache_read_tokens=read,
        cache_write_5m_tokens=written - written_1h,
        cache_write_1h_tokens=written_1h,
        reasoning_tokens=count_of(object_of(usage, "output_tokens_details"), "thinking_tokens"),
    )


def _web_searches(usage: Json) -> int:
    return count_of(object_of(usage, "server_tool_use"), "web_search_requests")


def _part(block: Json) -> CompletionPart:
    kind = text_of(block, "type")
    if kind == "text":
        return CompletionPart(kind=PartKind.TEXT, text=whole_text(text_of(block, "text")))
    if kind == "thinking":
        text = whole_text(text_of(block, "thinking"))
        return CompletionPart(kind=PartKind.REASONING, text=text, provider_state=rewritten(block))
    if kind == "redacted_thinking":
        return CompletionPart(kind=PartKind.REASONING, provider_state=rewritten(block))
    if kind in _TOOL_BLOCKS:
        return CompletionPart(kind=PartKind.TOOL_CALL, tool_call=_tool_call(block, is_vendor_run=_TOOL_BLOCKS[kind]))
    return CompletionPart(kind=PartKind.OTHER, provider_state=rewritten(block))


def _tool_call(block: Json, *, is_vendor_run: bool) -> ToolCall:
    # A streamed call keeps the model's own text, which need not be JSON.
    streamed = optional_text_of(block, STREAMED_INPUT)
    return ToolCall(
        call_id=text_of(block, "id"),
        name=text_of(block, "name"),
        arguments=streamed or rewritten(block.get("input") or {}).decode(),
        is_vendor_run=is_vendor_run,
    )


def _joined(parts: tuple[CompletionPart, ...], kind: PartKind) -> str:
    return "".join(part.text for part in parts if part.kind is kind)


class AnthropicDecoder(BaseDecoder):
    """Gathers a stream's events into the message that they describe."""

    def __init__(self, response: WireResponse, route: Route) -> None:
        super().__init__(response, route)
        self._message: Json = {}
        self._blocks: dict[int, Json] = {}
        self._pieces: dict[int, dict[str, list[str]]] = {}

    @override
    def _take_object(self, name: str, event: Json) -> list[Delta]:
        kind = text_of(event, "type") or name
        if kind == "content_block_delta":
            return self._take_delta(count_of(event, "index"), object_of(event, "delta"))
        if kind == "content_block_start":
            return self._start_block(count_of(event, "index"), object_of(event, "content_block"))
        if kind == "message_start":
            self._start_message(object_of(event, "message"))
        elif kind == "message_delta":
            self._update(event)
        elif kind == "message_stop":
            self._is_complete = True
        elif kind == "error":
            self._failure = ANTHROPIC.classify_event(event, self._response, self._route.provider)
        return []

    def _start_message(self, message: Json) -> None:
        if self._blocks:
            # A relay that began anew: the halves of two answers are no answer.
            self._fail_malformed("second_message")
            return
        self._message = message

    def _update(self, event: Json) -> None:
        self._message.update(object_of(event, "delta"))
        told = {key: value for key, value in object_of(event, "usage").items() if value is not None}
        # Counts in a stream are cumulative; those that a later event leaves out stand as they were.
        self._message["usage"] = {**object_of(self._message, "usage"), **told}

    def _start_block(self, index: int, block: Json) -> list[Delta]:
        self._blocks[index] = dict(block)
        kind = text_of(block, "type")
        if kind == "fallback":
            # The last such block names the model that serves the answer.
            self._message["model"] = text_of(object_of(block, "to"), "model") or text_of(self._message, "model")
        if kind in _TOOL_BLOCKS:
            name, call_id = text_of(block, "name"), text_of(block, "id")
            return [Delta(kind=DeltaKind.TOOL_START, part_index=index, text=name, call_id=call_id)]
        if kind == "redacted_thinking":
            return [Delta(kind=DeltaKind.PROVIDER_STATE, part_index=index, provider_state=rewritten(block))]
        first = text_of(block, "text") if kind == "text" else ""
        return [Delta(kind=DeltaKind.TEXT, part_index=index, text=first)] if first else []

    def _take_delta(self, index: int, delta: Json) -> list[Delta]:
        kind = text_of(delta, "type")
        if kind == "compaction_delta":
            self._blocks.setdefault(index, {}).update({**delta, "type": "compaction"})
        if kind not in _DELTAS:
            return []
        source, target, shown = _DELTAS[kind]
        piece = text_of(delta, source)
        self._pieces.setdefault(index, {}).setdefault(target, []).append(piece)
        if shown is None or not piece:
            return []
        return [Delta(kind=shown, part_index=index, text=piece)]

    @override
    def _usage(self) -> Usage:
        model = text_of(self._message, "model") or self._route.model.model_id
        return usage_from(object_of(self._message, "usage"), model)

    @override
    def _may_end_here(self) -> bool:
        # The stop reason is the last thing said; some gateways drop the event after it.
        return bool(text_of(self._message, "stop_reason"))

    @override
    def _completion(self) -> Completion:
        for index, pieces in self._pieces.items():
            block = self._blocks.setdefault(index, {"type": "text"})
            for target, texts in pieces.items():
                block[target] = text_of(block, target) + "".join(texts)
        self._pieces.clear()
        self._message["content"] = [self._blocks[index] for index in sorted(self._blocks)]
        return completion_of(self._message, self._response, self._route)

    @override
    def _parse_whole(self, response: WireResponse) -> Completion:
        return parse_message(response, self._route)
