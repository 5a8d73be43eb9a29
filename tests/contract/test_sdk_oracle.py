"""The official SDKs as the judge of our requests: the same call puts the same bytes of meaning on the wire.

Each case is written twice, once as a normalized call for our codec and once as a call of the vendor's own SDK, whose
transport is replaced by one that only looks. What may differ is listed here with its reason; anything else fails.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anthropic
import httpx2
import jsonschema
import openai
import pytest

from catalogue.book import load_catalogue
from catalogue.models import Dialect, Effort
from router.domain.completions import ChatCall, ImagePart, Message, OutputSchema, Role, TextPart
from router.domain.embeddings import EmbedCall
from router.domain.routes import Route
from router.domain.wire import WireRequest
from router.providers.registry import Codecs

OPENAPI = Path(__file__).resolve().parents[3] / "shared" / "openapi" / "openai.json"
CATALOGUE = load_catalogue()
CODECS = Codecs()
KEY = "canary-of-the-oracle"
MAY_DIFFER: Final = {
    "user-agent": "we name ourselves",
    "accept-encoding": "the transport's, which bounds decompression",
    "connection": "the transport's",
    "host": "the transport's, from the URL",
    "content-length": "the transport's, from the body",
}
MAY_DIFFER_PREFIX: Final = "x-stainless-"
"""The SDKs' telemetry about themselves and the machine they run on."""

SCHEMA: Final = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": ["allow", "block"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}
PIXEL: Final = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@dataclass(frozen=True)
class Case:
    """One call in both forms."""

    name: str
    build: Callable[[], WireRequest]
    sdk: Callable[[httpx2.Client], object]


def _route(provider: str, model_id: str, dialect: Dialect | None = None) -> Route:
    model = CATALOGUE.model(provider, model_id)
    row = CATALOGUE.provider(provider)
    assert model is not None
    assert row is not None
    assert row.base_url is not None
    found = dialect or CATALOGUE.dialect(provider, model)
    return Route(provider=provider, dialect=found, base_url=row.base_url, model=model)


def _chat(route: Route, **changes: Any) -> WireRequest:
    said: dict[str, Any] = {
        "messages": (_said(Role.USER, "Is this fine?"),),
        "output_tokens_max": 300,
        "system": "You judge texts.",
        **changes,
    }
    return CODECS.chat(route).build_chat(ChatCall(**said), route)


def _said(role: Role, text: str) -> Message:
    return Message(role=role, parts=(TextPart(text=text),))


def _anthropic(client: httpx2.Client) -> Any:
    return anthropic.Anthropic(api_key=KEY, max_retries=0, http_client=client).messages


def _openai(client: httpx2.Client) -> Any:
    return openai.OpenAI(api_key=KEY, max_retries=0, http_client=client)


HAIKU = _route("anthropic", "claude-haiku-4-5")
SONNET = _route("anthropic", "claude-sonnet-5-5")
MINI = _route("openai", "gpt-4o-mini")
REASONER = _route("openai", "gpt-5.4-mini")
SMALL = _route("openai", "text-embedding-3-small", Dialect.OPENAI_CHAT)
SHORT = {"max_tokens": 300, "system": "You judge texts.", "service_tier": "standard_only"}
ASKED = [{"role": "user", "content": "Is this fine?"}]
INSTRUCTED = [{"role": "system", "content": "You judge texts."}, *ASKED]
IMAGE = ImagePart(media_type="image/png", data=PIXEL, width_px=1, height_px=1)
LOOK = (Message(role=Role.USER, parts=(TextPart(text="What is this?"), IMAGE)),)
TALK = (_said(Role.USER, "Hi"), _said(Role.ASSISTANT, "Hello"), _said(Role.USER, "Well?"))
TALK_JSON = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Well?"},
]
DATA_URL = f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"
PLAIN_OPENAI = {"model": "gpt-4o-mini", "max_completion_tokens": 300, "store": False, "service_tier": "default"}
PLAIN_RESPONSES = {
    "model": "gpt-5.4-mini",
    "max_output_tokens": 300,
    "store": False,
    "service_tier": "default",
    "instructions": "You judge texts.",
    "include": ["reasoning.encrypted_content"],
}

CASES = [
    Case(
        "anthropic plain",
        lambda: _chat(HAIKU),
        lambda http: _anthropic(http).create(model="claude-haiku-4-5", messages=ASKED, **SHORT),
    ),
    Case(
        "anthropic structured, with effort",
        lambda: _chat(SONNET, schema=OutputSchema(name="verdict", schema=SCHEMA), effort=Effort.LOW),
        lambda http: _anthropic(http).create(
            model="claude-sonnet-5-5",
            messages=ASKED,
            output_config={"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
            **SHORT,
        ),
    ),
    Case(
        "anthropic without thinking",
        lambda: _chat(SONNET, effort=Effort.NONE),
        lambda http: _anthropic(http).create(
            model="claude-sonnet-5-5", messages=ASKED, thinking={"type": "disabled"}, **SHORT
        ),
    ),
    Case(
        "anthropic image",
        lambda: _chat(HAIKU, messages=LOOK),
        lambda http: _anthropic(http).create(
            model="claude-haiku-4-5",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {
                            "type": "image",
                            "source": {
                                "type": "base64",
                                "media_type": "image/png",
                                "data": base64.b64encode(PIXEL).decode(),
                            },
                        },
                    ],
                }
            ],
            **SHORT,
        ),
    ),
    Case(
        "anthropic stream of a conversation",
        lambda: _chat(HAIKU, messages=TALK, stream=True),
        lambda http: _anthropic(http).create(model="claude-haiku-4-5", messages=TALK_JSON, stream=True, **SHORT),
    ),
    Case(
        "anthropic models",
        lambda: CODECS.chat(HAIKU).build_list_models(HAIKU),
        lambda http: anthropic.Anthropic(api_key=KEY, max_retries=0, http_client=http).models.list(limit=1_000),
    ),
    Case(
        "openai plain",
        lambda: _chat(MINI, temperature=0.0),
        lambda http: _openai(http).chat.completions.create(messages=INSTRUCTED, temperature=0.0, **PLAIN_OPENAI),
    ),
    Case(
        "openai structured",
        lambda: _chat(MINI, schema=OutputSchema(name="verdict", schema=SCHEMA)),
        lambda http: _openai(http).chat.completions.create(
            messages=INSTRUCTED,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "verdict", "schema": SCHEMA, "strict": True},
            },
            **PLAIN_OPENAI,
        ),
    ),
    Case(
        "openai image",
        lambda: _chat(MINI, messages=LOOK, system=""),
        lambda http: _openai(http).chat.completions.create(
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {"type": "image_url", "image_url": {"url": DATA_URL}},
                    ],
                }
            ],
            **PLAIN_OPENAI,
        ),
    ),
    Case(
        "openai stream",
        lambda: _chat(MINI, messages=TALK, system="", stream=True),
        lambda http: _openai(http).chat.completions.create(
            messages=TALK_JSON, stream=True, stream_options={"include_usage": True}, **PLAIN_OPENAI
        ),
    ),
    Case(
        "openai responses, structured, with effort",
        lambda: _chat(REASONER, schema=OutputSchema(name="verdict", schema=SCHEMA), effort=Effort.LOW),
        lambda http: _openai(http).responses.create(
            input=ASKED,
            reasoning={"effort": "low"},
            text={"format": {"type": "json_schema", "name": "verdict", "schema": SCHEMA, "strict": True}},
            **PLAIN_RESPONSES,
        ),
    ),
    Case(
        "openai responses stream with an image",
        lambda: _chat(REASONER, messages=LOOK, stream=True),
        lambda http: _openai(http).responses.create(
            input=[
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "What is this?"},
                        {"type": "input_image", "image_url": DATA_URL, "detail": "auto"},
                    ],
                }
            ],
            stream=True,
            **PLAIN_RESPONSES,
        ),
    ),
    Case(
        "openai embeddings",
        lambda: CODECS.embedding(SMALL).build_embed(EmbedCall(texts=("a", "b"), dimensions=1_024), SMALL),
        lambda http: _openai(http).embeddings.create(
            model="text-embedding-3-small", input=["a", "b"], dimensions=1_024
        ),
    ),
    Case(
        "openai models",
        lambda: CODECS.chat(MINI).build_list_models(MINI),
        lambda http: _openai(http).models.list(),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_codec_puts_on_the_wire_what_the_official_sdk_puts(case: Case) -> None:
    """Method, URL, headers and body are the SDK's, but for what is listed with a reason."""
    ours, theirs = case.build(), _seen(case.sdk)
    assert ours.auth is not None
    headers = {**ours.headers, ours.auth.header: f"{ours.auth.prefix}{KEY}"}
    assert ours.method == theirs.method
    assert ours.url == str(theirs.url)
    assert _comparable(headers) == _comparable(dict(theirs.headers))
    assert _json(ours.body) == _json(theirs.content)


SCHEMAS = {
    "/chat/completions": "CreateChatCompletionRequest",
    "/responses": "CreateResponse",
    "/embeddings": "CreateEmbeddingRequest",
}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name.startswith("openai ")], ids=lambda case: case.name
)
def test_body_satisfies_the_published_description(case: Case) -> None:
    """What we send to OpenAI is valid by OpenAI's own OpenAPI description."""
    if not OPENAPI.is_file():
        in_ci = os.environ.get("CI") == "true"  # noqa: TID251 - the one thing that only the environment can say
        assert not in_ci, f"{OPENAPI} is missing; in CI it must be there"
        pytest.skip("the published description lies beside the repository, and is not there")
    request = case.build()
    if request.method != "POST":
        assert request.body == b""
        return
    name = next(name for ending, name in SCHEMAS.items() if request.url.endswith(ending))
    # Its unions overlap (a message with parts is an item in two ways), so "one of" can only mean "any of".
    description = json.loads(OPENAPI.read_text("utf-8").replace('"oneOf"', '"anyOf"'))
    schema = {"$ref": f"#/components/schemas/{name}", "components": description["components"]}
    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(json.loads(request.body)))
    assert [f"{error.json_path}: {error.message[:200]}" for error in errors] == []


def _seen(call: Callable[[httpx2.Client], object]) -> httpx2.Request:
    """Return the request that the SDK sends; the answer is an error, because nothing of it is wanted."""
    seen: list[httpx2.Request] = []

    def look(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(418, json={})

    with httpx2.Client(transport=httpx2.MockTransport(look)) as client, pytest.raises(Exception, match="418"):
        call(client)
    return seen[0]


def _comparable(headers: dict[str, str]) -> dict[str, str]:
    kept = {name.lower(): value for name, value in headers.items()}
    return {
        name: value for name, value in kept.items() if name not in MAY_DIFFER and not name.startswith(MAY_DIFFER_PREFIX)
    }


def _json(body: bytes) -> object:
    return json.loads(body) if body else None
