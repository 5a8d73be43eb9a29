"""What the codecs put into requests for the vendors that no official SDK judges, and what they never put there."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from catalogue.book import load_catalogue
from catalogue.models import Declared, Effort, Operation
from router.domain import errors
from router.domain.completions import (
    ChatCall,
    ImagePart,
    Message,
    OutputSchema,
    PriceCeiling,
    Role,
    StatePart,
    TextPart,
)
from router.domain.embeddings import EmbedCall
from router.domain.routes import Route
from router.providers.registry import Codecs

if TYPE_CHECKING:
    from router.domain.wire import WireRequest

CODECS = Codecs()
CATALOGUE = load_catalogue()
SCHEMA = OutputSchema(name="verdict", schema={"type": "object", "properties": {}, "additionalProperties": False})
IMAGE = ImagePart(media_type="image/png", data=b"png", width_px=10, height_px=10)
HOSTED = [provider.slug for provider in CATALOGUE.providers if not provider.takes_any_model]


def _route(provider: str, model_id: str, declared: Declared | None = None, **more: Any) -> Route:
    model = CATALOGUE.model(provider, model_id, declared)
    assert model is not None
    dialect = CATALOGUE.dialect(provider, model)
    return Route(provider=provider, dialect=dialect, base_url="https://provider.test/v1/", model=model, **more)


def _call(**changes: Any) -> ChatCall:
    said: dict[str, Any] = {
        "messages": (Message(role=Role.USER, parts=(TextPart(text="Hello"),)),),
        "output_tokens_max": 100,
        **changes,
    }
    return ChatCall(**said)


def _build(route: Route, **changes: Any) -> tuple[WireRequest, dict[str, Any]]:
    request = CODECS.chat(route).build_chat(_call(**changes), route)
    return request, orjson.loads(request.body)


@pytest.mark.parametrize("provider", HOSTED)
def test_every_default_model_makes_a_request_with_its_own_limits(provider: str) -> None:
    """Model, limit of output and messages are there, the key is not, and the URL is the base's and the path's."""
    row = CATALOGUE.provider(provider)
    assert row is not None
    route = _route(provider, row.default_models[Operation.GUARDRAIL_EVALUATION])
    request, body = _build(route, system="Judge.", schema=SCHEMA, effort=Effort.LOW, temperature=0.0, stream=True)
    limits = {"max_tokens", "max_completion_tokens", "max_output_tokens"} & body.keys()
    assert body["model"] == route.model.model_id
    assert [body[name] for name in limits] == [100]
    assert body["stream"] is True
    assert request.is_streaming
    assert request.url.startswith("https://provider.test/v1/")
    assert "//" not in request.url.removeprefix("https://")
    assert request.auth is not None
    assert not {"authorization", "x-api-key"} & request.headers.keys()


def test_openrouter_pins_upstreams_parameters_and_price() -> None:
    """An upstream must know every parameter, keep no prompt, and cost no more than was reserved."""
    ceiling = PriceCeiling(input_nano_usd_per_mtok=150_000_000, output_nano_usd_per_mtok=600_000_000)
    _, body = _build(_route("openrouter", "openai/gpt-4o-mini"), schema=SCHEMA, price_ceiling=ceiling)
    assert body["provider"] == {
        "require_parameters": True,
        "data_collection": "deny",
        "max_price": {"prompt": 0.15, "completion": 0.6},
    }
    assert body["usage"] == {"include": True}
    assert "models" not in body


def test_openrouter_and_deepseek_take_effort_in_their_own_fields() -> None:
    """Each vendor has its own place for it."""
    _, openrouter = _build(_route("openrouter", "openai/gpt-5-mini"), effort=Effort.LOW)
    _, deepseek = _build(_route("deepseek", "deepseek-v4-flash"), effort=Effort.NONE)
    _, groq = _build(_route("groq", "openai/gpt-oss-20b"), effort=Effort.HIGH)
    assert openrouter["reasoning"] == {"effort": "low"}
    assert deepseek["thinking"] == {"type": "disabled"}
    assert groq["reasoning_effort"] == "high"


def test_a_model_without_a_mode_is_asked_in_words() -> None:
    """The schema stands in the instructions, and a mode for any JSON is used where there is one."""
    plain = Declared(context_tokens=8_000)
    _, declared = _build(_route("openai_compatible", "own", plain), system="Judge.", schema=SCHEMA)
    _, deepseek = _build(_route("deepseek", "deepseek-v4-flash"), schema=SCHEMA)
    assert "response_format" not in declared
    assert declared["messages"][0]["content"].startswith("Judge.\n\n")
    assert '"additionalProperties":false' in declared["messages"][0]["content"]
    assert deepseek["response_format"] == {"type": "json_object"}
    assert "JSON schema" in deepseek["messages"][0]["content"]


def test_the_owners_tier_is_sent_and_otherwise_the_standard_one() -> None:
    """The tier decides the price, so it is always named where the vendor knows one."""
    assert _build(_route("openai", "gpt-4o-mini"))[1]["service_tier"] == "default"
    assert _build(_route("openai", "gpt-4o-mini", tier="priority"))[1]["service_tier"] == "priority"
    assert _build(_route("anthropic", "claude-haiku-4-5", tier="auto"))[1]["service_tier"] == "auto"
    assert "service_tier" not in _build(_route("cerebras", "gpt-oss-120b"))[1]


def test_ollama_names_its_context_and_never_cuts() -> None:
    """A prompt that does not fit fails, instead of losing its policy."""
    route = _route("ollama", "llama3.2", Declared(context_tokens=16_000, structured_output=True))
    message = Message(role=Role.USER, parts=(TextPart(text="Look"), IMAGE))
    request, body = _build(route, messages=(message,), system="Judge.", schema=SCHEMA, temperature=0.0)
    assert request.url == "https://provider.test/v1/api/chat"
    assert body["options"] == {"num_ctx": 16_000, "num_predict": 100, "temperature": 0.0}
    assert (body["truncate"], body["shift"], body["stream"]) == (False, False, False)
    assert body["format"] == SCHEMA.schema
    assert body["messages"][1]["images"] == [base64.b64encode(b"png").decode()]


def test_ollama_without_a_declared_context_still_names_one() -> None:
    """Its own default would be smaller than any operation needs."""
    _, body = _build(_route("ollama", "llama3.2", Declared()))
    assert body["options"]["num_ctx"] == 8_192


@pytest.mark.parametrize(
    ("provider", "model_id", "field"),
    [("anthropic", "claude-sonnet-5-5", "content"), ("openrouter", "openai/gpt-5-mini", "reasoning_details")],
)
def test_state_is_replayed_to_its_own_provider_and_model_only(provider: str, model_id: str, field: str) -> None:
    """Another vendor's or model's state is left out."""
    state = b'[{"type":"reasoning.text","text":"x"}]' if provider == "openrouter" else b'{"type":"thinking"}'
    own = StatePart(provider=provider, model=model_id, provider_state=state)
    foreign = StatePart(provider=provider, model="another", provider_state=state)
    said = TextPart(text="Yes")
    for part, is_replayed in ((own, True), (foreign, False)):
        message = Message(role=Role.ASSISTANT, parts=(part, said))
        _, body = _build(_route(provider, model_id), messages=(message,))
        assert (orjson.loads(state) in [body["messages"][0].get(field), *_listed(body, field)]) is is_replayed


def _listed(body: dict[str, Any], field: str) -> list[Any]:
    value = body["messages"][0].get(field)
    return value if isinstance(value, list) else []


def test_embeddings_name_their_size_where_the_model_takes_one() -> None:
    """A model of one size is not asked for it."""
    call = EmbedCall(texts=("a",), dimensions=1_024)
    small, fixed = _route("openai", "text-embedding-3-small"), _route("ollama", "bge-m3")
    together = _route("together", "intfloat/multilingual-e5-large-instruct")
    bodies = [orjson.loads(CODECS.embedding(each).build_embed(call, each).body) for each in (small, fixed, together)]
    assert bodies[0]["dimensions"] == 1_024
    assert "dimensions" not in bodies[1]
    assert bodies[1]["truncate"] is False
    assert "dimensions" not in bodies[2]


def test_a_provider_without_embeddings_says_so() -> None:
    """Asking it is an error of its own, not a request that fails."""
    with pytest.raises(errors.EmbeddingsUnsupportedError):
        CODECS.embedding(_route("anthropic", "claude-haiku-4-5"))


def test_a_known_vendors_host_brings_its_quirks_along() -> None:
    """A compatible base URL that is Groq's is spoken to as Groq."""
    vendor = CATALOGUE.vendor_of("openai_compatible", "https://api.groq.com/openai/v1")
    model = CATALOGUE.model(vendor, "llama-3.3-70b-versatile")
    assert vendor == "groq"
    assert model is not None
    route = Route(
        provider="openai_compatible",
        vendor=vendor,
        dialect=CATALOGUE.dialect(vendor, model),
        base_url="https://api.groq.com/openai/v1",
        model=model,
    )
    assert _build(route)[1]["service_tier"] == "on_demand"
