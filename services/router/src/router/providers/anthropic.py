"""Anthropic's Messages API: requests and models; its answers are read by ``anthropic_answers``.

Written against ``anthropic.types`` at API version 2026-10-21, which has no sampling parameters any more.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from catalogue.models import Effort, StructuredOutput
from router.domain.codecs import Codec
from router.domain.completions import ImagePart, StatePart, TextPart
from router.domain.wire import AuthScheme, WireRequest
from router.providers.anthropic_answers import AnthropicDecoder, parse_message
from router.providers.failure_tables import ANTHROPIC
from router.providers.failures import success_body
from router.providers.json_reading import Json, objects_of, read_object, text_of, write
from router.providers.prompting import instructions

if TYPE_CHECKING:
    from router.domain.codecs import StreamDecoder
    from router.domain.completions import ChatCall, Completion, Message
    from router.domain.errors import ProviderError
    from router.domain.routes import Route
    from router.domain.wire import WireResponse

API_VERSION: Final = "2026-10-21"
USER_AGENT: Final = "byok-router"
_AUTH: Final = AuthScheme(header="authorization", prefix="Bearer ")
"""As the official SDK sends it since API version 2026-10-21; before, it was ``x-api-key``."""
_MODELS_PAGE: Final = 1_000


class AnthropicCodec(Codec):
    """The codec of Anthropic's own host."""

    @override
    def build_chat(self, call: ChatCall, route: Route, /) -> WireRequest:
        body: Json = {
            "model": route.model.model_id,
            "max_tokens": call.output_tokens_max,
            "messages": [_message(message, route) for message in call.messages],
            # The tier decides the price, so it is never left to the account's own setting.
            "service_tier": route.tier or "standard_only",
        }
        system = instructions(call, route)
        if system:
            body["system"] = system
        output = _output_config(call, route)
        if output:
            body["output_config"] = output
        if call.effort is Effort.NONE and route.model.thinks:
            body["thinking"] = {"type": "disabled"}
        if call.stream:
            body["stream"] = True
        return WireRequest(
            method="POST",
            url=route.url("/v1/messages"),
            headers={**_headers(), "content-type": "application/json"},
            body=write(body),
            auth=_AUTH,
            is_streaming=call.stream,
        )

    @override
    def parse_chat(self, response: WireResponse, route: Route, /) -> Completion:
        return parse_message(response, route)

    @override
    def decode_stream(self, response: WireResponse, route: Route, /) -> StreamDecoder:
        return AnthropicDecoder(response, route)

    @override
    def classify(self, response: WireResponse, route: Route, /) -> ProviderError:
        return ANTHROPIC.classify(response, route.provider)

    @override
    def build_list_models(self, route: Route, /) -> WireRequest:
        url = route.url(f"/v1/models?limit={_MODELS_PAGE}")
        return WireRequest(method="GET", url=url, headers=_headers(), body=b"", auth=_AUTH)

    @override
    def parse_models(self, response: WireResponse, route: Route, /) -> tuple[str, ...]:
        body = success_body(response, route, ANTHROPIC)
        return tuple(name for row in objects_of(body, "data") if (name := text_of(row, "id")))


def _message(message: Message, route: Route) -> Json:
    blocks = [block for part in message.parts if (block := _block(part, route)) is not None]
    if len(blocks) == 1 and blocks[0].get("type") == "text":
        return {"role": message.role.value, "content": blocks[0]["text"]}
    return {"role": message.role.value, "content": blocks}


def _block(part: TextPart | ImagePart | StatePart, route: Route) -> Json | None:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        data = base64.b64encode(part.data).decode()
        return {"type": "image", "source": {"type": "base64", "media_type": part.media_type, "data": data}}
    # Another vendor's or model's state means nothing here.
    if (part.provider, part.model) != (route.provider, route.model.model_id):
        return None
    return read_object(part.provider_state)


def _output_config(call: ChatCall, route: Route) -> Json:
    config: Json = {}
    if call.effort is not None and call.effort is not Effort.NONE and call.effort in route.model.efforts:
        config["effort"] = call.effort.value
    if call.schema is not None and route.model.structured_output is StructuredOutput.JSON_SCHEMA:
        config["format"] = {"type": "json_schema", "schema": call.schema.schema}
    return config


def _headers() -> dict[str, str]:
    return {"accept": "application/json", "anthropic-version": API_VERSION, "user-agent": USER_AGENT}
