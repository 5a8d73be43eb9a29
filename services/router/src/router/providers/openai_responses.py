"""OpenAI's Responses API, by which reasoning models are spoken to on OpenAI's own host.

Nothing is stored there: what a later turn needs of the model's reasoning comes back encrypted and is replayed by us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from typing_extensions import override

from catalogue.models import StructuredOutput
from router.domain.completions import (
    Completion,
    CompletionPart,
    Delta,
    DeltaKind,
    FinishReason,
    ImagePart,
    PartKind,
    Role,
    TextPart,
    ToolCall,
)
from router.domain.wire import WireRequest
from router.providers.decoding import OK, BaseDecoder, as_stream, is_stream, replayed
from router.providers.dialects import vendor
from router.providers.failures import malformed, success_body
from router.providers.json_reading import (
    Json,
    count_of,
    object_of,
    objects_of,
    optional_text_of,
    read_object,
    rewritten,
    text_of,
    whole_text,
    write,
)
from router.providers.openai_chat import BEARER, OpenAIChatCodec, image_url, json_headers
from router.providers.openai_usage import cost_nano_usd, usage_from
from router.providers.prompting import instructions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.domain.codecs import StreamDecoder
    from router.domain.completions import ChatCall, Message
    from router.domain.routes import Route
    from router.domain.usage import Usage
    from router.domain.wire import WireResponse

_INCOMPLETE: Final = {
    "max_output_tokens": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
    # Both end at a boundary from which the turn may go on.
    "max_messages": FinishReason.PAUSED,
    "steered": FinishReason.PAUSED,
}
_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_TEXT_DELTAS: Final = {
    "response.output_text.delta": DeltaKind.TEXT,
    "response.refusal.delta": DeltaKind.REFUSAL,
    "response.reasoning_text.delta": DeltaKind.REASONING,
    "response.reasoning_summary_text.delta": DeltaKind.REASONING,
    "response.function_call_arguments.delta": DeltaKind.TOOL_ARGUMENTS,
    "response.custom_tool_call_input.delta": DeltaKind.TOOL_ARGUMENTS,
}
_CALLER_TOOLS: Final = frozenset(
    {"function_call", "custom_tool_call", "computer_call", "local_shell_call", "apply_patch_call"}
)


class OpenAIResponsesCodec(OpenAIChatCodec):
    """The codec of ``/responses``; models and errors are those of the host's Chat Completions."""

    @override
    def build_chat(self, call: ChatCall, route: Route, /) -> WireRequest:
        body: Json = {
            "model": route.model.model_id,
            "input": [item for message in call.messages for item in _items(message, route)],
            "max_output_tokens": call.output_tokens_max,
            "store": False,
            # The tier decides the price, so it is never left to the account's own setting.
            "service_tier": route.tier or "default",
        }
        system = instructions(call, route)
        if system:
            body["instructions"] = system
        if call.temperature is not None and route.model.takes_temperature:
            body["temperature"] = call.temperature
        if call.effort is not None and call.effort in route.model.efforts:
            body["reasoning"] = {"effort": call.effort.value}
        if route.model.thinks:
            body["include"] = ["reasoning.encrypted_content"]
        if call.schema is not None:
            body.update(_text_format(call, route))
        if call.stream:
            body["stream"] = True
        return WireRequest(
            method="POST",
            url=route.url("/responses"),
            headers=json_headers(),
            body=write(body),
            auth=BEARER,
            is_streaming=call.stream,
        )

    @override
    def parse_chat(self, response: WireResponse, route: Route, /) -> Completion:
        return parse_response(response, route)

    @override
    def decode_stream(self, response: WireResponse, route: Route, /) -> StreamDecoder:
        return ResponsesDecoder(response, route)


def parse_response(response: WireResponse, route: Route) -> Completion:
    """Return the completion of a whole answer.

    Raises:
        ProviderError: The status or the body is an error, or the body is no response.
    """
    if response.status == OK and is_stream(response):
        return replayed(ResponsesDecoder(as_stream(response), route), response)
    return completion_of(success_body(response, route, vendor(route.vendor).failures), response, route)


def completion_of(body: Json, response: WireResponse, route: Route) -> Completion:
    """Return the completion of a whole response object.

    Raises:
        MalformedAnswerError: It has no output.
    """
    if not isinstance(body.get("output"), list):
        raise malformed(response, route.provider, "output")
    parts = tuple(part for item in objects_of(body, "output") for part in _parts(item))
    model = text_of(body, "model") or route.model.model_id
    finish, said = _finish(body, parts)
    refusals = [part.text for part in parts if part.kind is PartKind.REFUSAL]
    usage = object_of(body, "usage")
    return Completion(
        text=_joined(parts, PartKind.TEXT),
        parts=parts,
        finish_reason=finish,
        usage=usage_from(usage, model),
        model=model,
        tool_calls=tuple(part.tool_call for part in parts if part.tool_call is not None),
        reasoning=_joined(parts, PartKind.REASONING),
        refusal="".join(refusals) if refusals else None,
        vendor_finish_reason=said[:64],
        response_id=text_of(body, "id"),
        tier=optional_text_of(body, "service_tier"),
        provider_cost_nano_usd=cost_nano_usd(usage) if vendor(route.vendor).reports_cost else None,
    )


def _finish(body: Json, parts: tuple[CompletionPart, ...]) -> tuple[FinishReason, str]:
    status = text_of(body, "status")
    if status == "incomplete":
        reason = text_of(object_of(body, "incomplete_details"), "reason")
        return _INCOMPLETE.get(reason, FinishReason.UNKNOWN), reason or status
    if status in {"failed", "cancelled"}:
        return FinishReason.ERROR, status
    if status != "completed":
        return FinishReason.UNKNOWN, status
    waits = any(part.tool_call is not None and not part.tool_call.is_vendor_run for part in parts)
    return (FinishReason.TOOL_CALL if waits else FinishReason.STOP), status


def _parts(item: Json) -> Iterator[CompletionPart]:
    kind = text_of(item, "type")
    if kind == "message":
        yield from (_content_part(block) for block in objects_of(item, "content"))
    elif kind == "reasoning":
        rows = [*objects_of(item, "summary"), *objects_of(item, "content")]
        text = "".join(text_of(row, "text") for row in rows)
        yield CompletionPart(kind=PartKind.REASONING, text=whole_text(text), provider_state=rewritten(item))
    elif kind.endswith("_call"):
        yield CompletionPart(kind=PartKind.TOOL_CALL, tool_call=_tool_call(item, kind))
    else:
        yield CompletionPart(kind=PartKind.OTHER, provider_state=rewritten(item))


def _content_part(block: Json) -> CompletionPart:
    kind = text_of(block, "type")
    if kind == "output_text":
        return CompletionPart(kind=PartKind.TEXT, text=whole_text(text_of(block, "text")))
    if kind == "refusal":
        return CompletionPart(kind=PartKind.REFUSAL, text=whole_text(text_of(block, "refusal")))
    return CompletionPart(kind=PartKind.OTHER, provider_state=rewritten(block))


def _tool_call(item: Json, kind: str) -> ToolCall:
    arguments = text_of(item, "arguments") or text_of(item, "input")
    if not arguments and item.get("action") is not None:
        arguments = rewritten(item["action"]).decode()
    return ToolCall(
        call_id=text_of(item, "call_id") or text_of(item, "id"),
        name=text_of(item, "name") or kind.removesuffix("_call"),
        arguments=whole_text(arguments),
        is_vendor_run=kind not in _CALLER_TOOLS,
    )


def _joined(parts: tuple[CompletionPart, ...], kind: PartKind) -> str:
    return "".join(part.text for part in parts if part.kind is kind)


def _items(message: Message, route: Route) -> Iterator[Json]:
    """Yield a message's items: its replayed state first, then its content."""
    content: list[Json] = []
    for part in message.parts:
        if isinstance(part, TextPart):
            kind = "output_text" if message.role is Role.ASSISTANT else "input_text"
            content.append({"type": kind, "text": part.text})
        elif isinstance(part, ImagePart):
            content.append({"type": "input_image", "image_url": image_url(part), "detail": "auto"})
        elif (part.provider, part.model) == (route.provider, route.model.model_id):
            yield read_object(part.provider_state)
    if len(content) == 1 and content[0]["type"] == "input_text":
        yield {"role": message.role.value, "content": content[0]["text"]}
    elif content:
        yield {"role": message.role.value, "content": content}


def _text_format(call: ChatCall, route: Route) -> Json:
    mode = route.model.structured_output
    if call.schema is None or mode is StructuredOutput.NONE:
        return {}
    if mode is StructuredOutput.JSON_OBJECT:
        return {"text": {"format": {"type": "json_object"}}}
    form = {"type": "json_schema", "name": call.schema.name, "schema": call.schema.schema, "strict": True}
    return {"text": {"format": form}}


class ResponsesDecoder(BaseDecoder):
    """Follows a stream; its last event carries the whole response."""

    def __init__(self, response: WireResponse, route: Route) -> None:
        super().__init__(response, route)
        self._final: Json = {}
        self._items: dict[int, Json] = {}

    @override
    def _take_object(self, name: str, event: Json) -> list[Delta]:
        kind = text_of(event, "type") or name
        shown = _TEXT_DELTAS.get(kind)
        if shown is not None:
            return [Delta(kind=shown, part_index=count_of(event, "output_index"), text=text_of(event, "delta"))]
        if kind == "response.output_item.added":
            return _started(count_of(event, "output_index"), object_of(event, "item"))
        if kind == "response.output_item.done":
            self._items[count_of(event, "output_index")] = object_of(event, "item")
        elif kind in _ENDS:
            self._end(kind, object_of(event, "response"))
        elif kind == "error":
            self._fail(event)
        return []

    def _end(self, kind: str, final: Json) -> None:
        self._final = final
        if kind == "response.failed" or object_of(final, "error"):
            self._fail(final)
        else:
            self._is_complete = True

    def _fail(self, event: Json) -> None:
        table = vendor(self._route.vendor).failures
        self._failure = table.classify_event(event, self._response, self._route.provider)

    @override
    def _usage(self) -> Usage:
        model = text_of(self._final, "model") or self._route.model.model_id
        return usage_from(object_of(self._final, "usage"), model)

    @override
    def _may_end_here(self) -> bool:
        return False

    @override
    def _completion(self) -> Completion:
        # Some hosts leave the output out of the last event; the items have come one by one before.
        output = self._final.get("output") or [item for _, item in sorted(self._items.items())]
        return completion_of({**self._final, "output": output}, self._response, self._route)

    @override
    def _parse_whole(self, response: WireResponse) -> Completion:
        return parse_response(response, self._route)


def _started(index: int, item: Json) -> list[Delta]:
    if text_of(item, "type") not in _CALLER_TOOLS:
        return []
    call_id = text_of(item, "call_id")
    return [Delta(kind=DeltaKind.TOOL_START, part_index=index, text=text_of(item, "name"), call_id=call_id)]
