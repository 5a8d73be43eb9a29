"""Ollama's own API: chat, embeddings and models.

Its OpenAI-dialect route ignores ``num_ctx`` and cuts long prompts without a word, so that a guardrail could lose its
policy. Here the context is always named and cutting is switched off.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from catalogue.models import Effort
from router.domain.codecs import Codec, EmbeddingCodec
from router.domain.completions import (
    Completion,
    CompletionPart,
    Delta,
    DeltaKind,
    FinishReason,
    ImagePart,
    PartKind,
    TextPart,
    ToolCall,
)
from router.domain.embeddings import EmbeddingResult
from router.domain.usage import TokenCounts, UsageFlag, missing_usage, usage_of
from router.domain.wire import WireRequest
from router.providers.decoding import OK, BaseDecoder, JsonLines, as_stream, replayed
from router.providers.failure_tables import OLLAMA
from router.providers.failures import is_error_body, malformed, success_body
from router.providers.json_reading import (
    Json,
    object_of,
    objects_of,
    optional_count_of,
    rewritten,
    text_of,
    whole_text,
    write,
)
from router.providers.openai_chat import BEARER, headers, json_headers
from router.providers.openai_embeddings import check_vectors, read_vector
from router.providers.prompting import instructions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.domain.codecs import StreamDecoder
    from router.domain.completions import ChatCall, Message
    from router.domain.embeddings import EmbedCall
    from router.domain.errors import ProviderError
    from router.domain.routes import Route
    from router.domain.usage import Usage
    from router.domain.wire import WireResponse

CONTEXT_TOKENS_DEFAULT: Final = 8_192
"""Named where the owner has declared no context: the least that any operation asks for."""

_LINES: Final = re.compile(rb"\}\r?\n\{")
_FINISH: Final = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    # Versions before done reasons say only that they are done.
    "": FinishReason.STOP,
}


class OllamaCodec(Codec, EmbeddingCodec):
    """The codec of ``/api/chat``, ``/api/embed`` and ``/api/tags``."""

    @override
    def build_chat(self, call: ChatCall, route: Route, /) -> WireRequest:
        system = instructions(call, route)
        messages = [_message(message) for message in call.messages]
        options: Json = {
            "num_ctx": route.model.context_tokens or CONTEXT_TOKENS_DEFAULT,
            "num_predict": call.output_tokens_max,
        }
        if call.temperature is not None and route.model.takes_temperature:
            options["temperature"] = call.temperature
        body: Json = {
            "model": route.model.model_id,
            "messages": [{"role": "system", "content": system}, *messages] if system else messages,
            "options": options,
            # Left out, it means true.
            "stream": call.stream,
            "truncate": False,
            "shift": False,
        }
        if call.schema is not None:
            # Every model is held to a schema here, by a grammar; what it is worth is the model's affair.
            body["format"] = call.schema.schema
        if call.effort is not None and route.model.thinks:
            body["think"] = call.effort is not Effort.NONE
        return _post(route, "/api/chat", body, is_streaming=call.stream)

    @override
    def parse_chat(self, response: WireResponse, route: Route, /) -> Completion:
        return parse_answer(response, route)

    @override
    def decode_stream(self, response: WireResponse, route: Route, /) -> StreamDecoder:
        return OllamaDecoder(response, route)

    @override
    def classify(self, response: WireResponse, route: Route, /) -> ProviderError:
        return OLLAMA.classify(response, route.provider)

    @override
    def build_list_models(self, route: Route, /) -> WireRequest:
        return WireRequest(method="GET", url=route.url("/api/tags"), headers=headers(), body=b"", auth=BEARER)

    @override
    def parse_models(self, response: WireResponse, route: Route, /) -> tuple[str, ...]:
        rows = objects_of(success_body(response, route, OLLAMA), "models")
        return tuple(name for row in rows if (name := text_of(row, "model") or text_of(row, "name")))

    @override
    def build_embed(self, call: EmbedCall, route: Route, /) -> WireRequest:
        body: Json = {"model": route.model.model_id, "input": list(call.texts), "truncate": False}
        facts = route.model.embedding
        if facts is not None and facts.takes_dimensions:
            body["dimensions"] = call.dimensions
        if route.model.context_tokens is not None:
            body["options"] = {"num_ctx": route.model.context_tokens}
        return _post(route, "/api/embed", body)

    @override
    def parse_embed(self, response: WireResponse, call: EmbedCall, route: Route, /) -> EmbeddingResult:
        body = success_body(response, route, OLLAMA)
        # The older ``/api/embeddings`` answers one vector, without a list around it.
        rows = [body["embedding"]] if "embedding" in body else body.get("embeddings")
        try:
            vectors = tuple(read_vector(row) for row in rows) if isinstance(rows, list) else ()
        except ValueError:
            raise malformed(response, route.provider, "vector") from None
        check_vectors(vectors, call, response, route)
        model = text_of(body, "model") or route.model.model_id
        return EmbeddingResult(vectors=vectors, usage=usage_from(body, model), model=model, dimensions=call.dimensions)


def parse_answer(response: WireResponse, route: Route) -> Completion:
    """Return the completion of a whole answer.

    Raises:
        ProviderError: The status or the body is an error, or the body is no chat answer.
    """
    if response.status == OK and _LINES.search(response.body):
        # Lines instead of one document: ``stream`` left out means true there.
        return replayed(OllamaDecoder(as_stream(response), route), response)
    return completion_of(success_body(response, route, OLLAMA), response, route)


def completion_of(body: Json, response: WireResponse, route: Route) -> Completion:
    """Return the completion of a whole body.

    Raises:
        MalformedAnswerError: It has no message.
    """
    message = _message_of(body)
    if not message:
        raise malformed(response, route.provider, "message")
    parts = tuple(_parts(message))
    model = text_of(body, "model") or route.model.model_id
    said = text_of(body, "done_reason")
    return Completion(
        text=_joined(parts, PartKind.TEXT),
        parts=parts,
        finish_reason=_FINISH.get(said, FinishReason.UNKNOWN) if body.get("done") is True else FinishReason.UNKNOWN,
        usage=usage_from(body, model),
        model=model,
        tool_calls=tuple(part.tool_call for part in parts if part.tool_call is not None),
        reasoning=_joined(parts, PartKind.REASONING),
        vendor_finish_reason=said[:64],
    )


def _message_of(body: Json) -> Json:
    """Return the message of an answer; ``/api/generate`` says its text beside it instead."""
    message = object_of(body, "message")
    if message or "response" not in body:
        return message
    return {"content": body.get("response"), "thinking": body.get("thinking")}


def usage_from(body: Json, model: str) -> Usage:
    """Return the normalized usage; a prompt that was still in the cache is not counted and the usage is flagged."""
    inputs, outputs = optional_count_of(body, "prompt_eval_count"), optional_count_of(body, "eval_count")
    if inputs is None and outputs is None:
        return missing_usage(model)
    usage = usage_of(model, TokenCounts(input_tokens=inputs or 0, output_tokens=outputs or 0))
    return usage if inputs is not None else usage.flagged(UsageFlag.PARTIAL)


def _parts(message: Json) -> Iterator[CompletionPart]:
    for name, kind in (("thinking", PartKind.REASONING), ("content", PartKind.TEXT)):
        text = text_of(message, name)
        if text:
            yield CompletionPart(kind=kind, text=whole_text(text))
    for call in objects_of(message, "tool_calls"):
        function = object_of(call, "function")
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else rewritten(arguments or {}).decode()
        tool = ToolCall(call_id=text_of(call, "id"), name=text_of(function, "name"), arguments=text)
        yield CompletionPart(kind=PartKind.TOOL_CALL, tool_call=tool)


def _joined(parts: tuple[CompletionPart, ...], kind: PartKind) -> str:
    return "".join(part.text for part in parts if part.kind is kind)


def _message(message: Message) -> Json:
    texts = [part.text for part in message.parts if isinstance(part, TextPart)]
    images = [base64.b64encode(part.data).decode() for part in message.parts if isinstance(part, ImagePart)]
    written: Json = {"role": message.role.value, "content": "\n\n".join(texts)}
    if images:
        written["images"] = images
    return written


def _post(route: Route, path: str, body: Json, *, is_streaming: bool = False) -> WireRequest:
    return WireRequest(
        method="POST",
        url=route.url(path),
        headers=json_headers(),
        body=write(body),
        auth=BEARER,
        is_streaming=is_streaming,
    )


class OllamaDecoder(BaseDecoder):
    """Gathers a stream's lines into the answer that they add up to."""

    def __init__(self, response: WireResponse, route: Route) -> None:
        super().__init__(response, route, cutter=JsonLines())
        self._texts: dict[str, list[str]] = {"content": [], "thinking": []}
        self._calls: list[Json] = []
        self._last: Json = {}

    @override
    def _take_object(self, name: str, event: Json) -> list[Delta]:
        if is_error_body(event):
            self._failure = OLLAMA.classify_event(event, self._response, self._route.provider)
            return []
        self._last = event
        message = _message_of(event)
        deltas = list(self._add_texts(message))
        for call in objects_of(message, "tool_calls"):
            deltas.extend(self._add_call(call))
        self._is_complete = event.get("done") is True
        return deltas

    def _add_texts(self, message: Json) -> Iterator[Delta]:
        for index, (field, kind) in enumerate((("thinking", DeltaKind.REASONING), ("content", DeltaKind.TEXT))):
            piece = text_of(message, field)
            if piece:
                self._texts[field].append(piece)
                yield Delta(kind=kind, part_index=index, text=piece)

    def _add_call(self, call: Json) -> Iterator[Delta]:
        index = len(self._texts) + len(self._calls)
        self._calls.append(call)
        function = object_of(call, "function")
        yield Delta(
            kind=DeltaKind.TOOL_START, part_index=index, text=text_of(function, "name"), call_id=text_of(call, "id")
        )
        arguments = rewritten(function.get("arguments") or {}).decode()
        yield Delta(kind=DeltaKind.TOOL_ARGUMENTS, part_index=index, text=arguments)

    @override
    def _usage(self) -> Usage:
        return usage_from(self._last, text_of(self._last, "model") or self._route.model.model_id)

    @override
    def _may_end_here(self) -> bool:
        return False

    @override
    def _completion(self) -> Completion:
        message: Json = {field: "".join(texts) for field, texts in self._texts.items()}
        message["role"] = "assistant"
        message["tool_calls"] = self._calls
        return completion_of({**self._last, "message": message}, self._response, self._route)

    @override
    def _parse_whole(self, response: WireResponse) -> Completion:
        return parse_answer(response, self._route)
