"""OpenAI's Chat Completions and embeddings: requests, for OpenAI and for the vendors of its dialect.

What differs between vendors is a row in ``dialects``; what differs between models is a row of the catalogue.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from catalogue.models import Effort, StructuredOutput
from router.domain.codecs import Codec
from router.domain.completions import ImagePart, StatePart, TextPart
from router.domain.wire import AuthScheme, WireRequest
from router.providers.dialects import EffortField, Vendor, vendor
from router.providers.failures import success_body
from router.providers.json_reading import Json, UnreadableError, objects_of, read_value, text_of, write
from router.providers.openai_chat_answers import ChatDecoder, parse_completion
from router.providers.prompting import instructions

if TYPE_CHECKING:
    from router.domain.codecs import StreamDecoder
    from router.domain.completions import ChatCall, Completion, Message, OutputSchema, PriceCeiling
    from router.domain.errors import ProviderError
    from router.domain.routes import Route
    from router.domain.wire import WireResponse

USER_AGENT: Final = "byok-router"
BEARER: Final = AuthScheme(header="authorization", prefix="Bearer ")
_NANO: Final = 1_000_000_000


class OpenAIChatCodec(Codec):
    """The codec of Chat Completions, on any host."""

    @override
    def build_chat(self, call: ChatCall, route: Route, /) -> WireRequest:
        body: Json = {
            "model": route.model.model_id,
            "messages": _messages(call, route),
            route.model.token_limit_parameter: call.output_tokens_max,
        }
        quirks = vendor(route.vendor)
        if call.temperature is not None and route.model.takes_temperature:
            body["temperature"] = call.temperature
        if call.schema is not None:
            body.update(_response_format(call.schema, route, quirks))
        if call.effort is not None:
            body.update(_effort(call.effort, route, quirks))
        body.update(_vendor_fields(call, route, quirks))
        if call.stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        return WireRequest(
            method="POST",
            url=route.url("/chat/completions"),
            headers=json_headers(),
            body=write(body),
            auth=BEARER,
            is_streaming=call.stream,
        )

    @override
    def parse_chat(self, response: WireResponse, route: Route, /) -> Completion:
        return parse_completion(response, route, vendor(route.vendor).failures)

    @override
    def decode_stream(self, response: WireResponse, route: Route, /) -> StreamDecoder:
        return ChatDecoder(response, route, table=vendor(route.vendor).failures)

    @override
    def classify(self, response: WireResponse, route: Route, /) -> ProviderError:
        return vendor(route.vendor).failures.classify(response, route.provider)

    @override
    def build_list_models(self, route: Route, /) -> WireRequest:
        return WireRequest(method="GET", url=route.url("/models"), headers=headers(), body=b"", auth=BEARER)

    @override
    def parse_models(self, response: WireResponse, route: Route, /) -> tuple[str, ...]:
        # Together answers a bare list where the others answer an object.
        rows = _bare_list(response) or objects_of(success_body(response, route, vendor(route.vendor).failures), "data")
        return tuple(name for row in rows if (name := text_of(row, "id")))


def headers() -> dict[str, str]:
    """Return the headers of a request without a body."""
    return {"accept": "application/json", "user-agent": USER_AGENT}


def json_headers() -> dict[str, str]:
    """Return the headers of a request with a JSON body."""
    return {**headers(), "content-type": "application/json"}


def image_url(part: ImagePart) -> str:
    """Return an image as a data URL; the vendor never fetches anything for us."""
    return f"data:{part.media_type};base64,{base64.b64encode(part.data).decode()}"


def _messages(call: ChatCall, route: Route) -> list[Json]:
    system = instructions(call, route)
    messages = [_message(message, route) for message in call.messages]
    if not system:
        return messages
    # A model without a role for instructions takes them as the user's first words.
    return [{"role": route.model.system_role.value, "content": system}, *messages]


def _message(message: Message, route: Route) -> Json:
    blocks: list[Json] = []
    written: Json = {"role": message.role.value}
    for part in message.parts:
        if isinstance(part, TextPart):
            blocks.append({"type": "text", "text": part.text})
        elif isinstance(part, ImagePart):
            blocks.append({"type": "image_url", "image_url": {"url": image_url(part)}})
        elif _is_own_state(part, route):
            written["reasoning_details"] = read_value(part.provider_state)
    is_plain = len(blocks) == 1 and blocks[0]["type"] == "text"
    written["content"] = blocks[0]["text"] if is_plain else blocks
    return written


def _is_own_state(part: StatePart, route: Route) -> bool:
    return (part.provider, part.model) == (route.provider, route.model.model_id)


def _response_format(schema: OutputSchema, route: Route, quirks: Vendor) -> Json:
    mode = route.model.structured_output
    if mode is StructuredOutput.NONE:
        return {}
    if mode is StructuredOutput.JSON_OBJECT:
        return {"response_format": {"type": "json_object"}}
    described: Json = {"name": schema.name, "schema": schema.schema}
    if quirks.strict_schema:
        described["strict"] = True
    return {"response_format": {"type": "json_schema", "json_schema": described}}


def _effort(effort: Effort, route: Route, quirks: Vendor) -> Json:
    if quirks.effort is EffortField.THINKING:
        kind = "disabled" if effort is Effort.NONE else "enabled"
        return {"thinking": {"type": kind}} if route.model.thinks else {}
    if effort not in route.model.efforts:
        return {}
    if quirks.effort is EffortField.REASONING:
        return {"reasoning": {"effort": effort.value}}
    return {"reasoning_effort": effort.value}


def _vendor_fields(call: ChatCall, route: Route, quirks: Vendor) -> Json:
    fields: Json = {}
    if quirks.stores:
        fields["store"] = False
    # The tier decides the price, so it is never left to the account's own setting.
    tier = route.tier or quirks.tier
    if tier is not None:
        fields["service_tier"] = tier
    if quirks.routes_upstreams:
        fields["provider"] = _upstream_terms(call.price_ceiling)
        fields["usage"] = {"include": True}
    return fields


def _upstream_terms(ceiling: PriceCeiling | None) -> Json:
    """Return what an upstream must satisfy: know every parameter sent, keep no prompt, cost no more than reserved."""
    terms: Json = {"require_parameters": True, "data_collection": "deny"}
    if ceiling is not None:
        terms["max_price"] = {
            "prompt": ceiling.input_nano_usd_per_mtok / _NANO,
            "completion": ceiling.output_nano_usd_per_mtok / _NANO,
        }
    return terms


def _bare_list(response: WireResponse) -> list[Json]:
    try:
        value = read_value(response.body)
    except UnreadableError:
        return []
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
