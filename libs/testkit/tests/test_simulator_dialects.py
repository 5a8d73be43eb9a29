"""The simulator speaks well enough that the vendors' own SDKs understand it."""

import json
import math
import ssl
from collections.abc import AsyncIterator

import aiohttp
import anthropic
import httpx2
import openai
import pytest
from jsonschema import Draft202012Validator

from testkit.pki import ThrowawayCa
from testkit.simulator.server import Simulator
from testkit.simulator.vendors import VENDORS, make_key

_GUARDRAIL = {
    "type": "object",
    "additionalProperties": False,
    "required": ["verdict", "score", "findings", "quotes"],
    "properties": {
        "verdict": {"type": "string", "enum": ["allow", "review", "block"]},
        "score": {"type": "number"},
        "findings": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["rule_id", "score", "reason"],
                "properties": {
                    "rule_id": {"type": "string"},
                    "score": {"type": "number"},
                    "reason": {"type": "string"},
                },
            },
        },
        "quotes": {"type": "array", "items": {"$ref": "#/$defs/quote"}},
    },
    "$defs": {
        "quote": {
            "type": "object",
            "additionalProperties": False,
            "required": ["rule_id", "text"],
            "properties": {"rule_id": {"type": "string"}, "text": {"type": "string"}},
        }
    },
}
_GOOD = "A recipe for bread."
_BAD = "Buy FORBIDDEN goods here."


@pytest.fixture
async def simulator(throwaway_ca: ThrowawayCa) -> AsyncIterator[Simulator]:
    """Serve over TLS."""
    async with Simulator(throwaway_ca.issue("provider")) as running:
        yield running


@pytest.fixture
def trusting(throwaway_ca: ThrowawayCa) -> ssl.SSLContext:
    """Trust the throw-away authority."""
    return ssl.create_default_context(cafile=str(throwaway_ca.ca_file))


def _openai(simulator: Simulator, context: ssl.SSLContext, vendor: str = "openai") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key=make_key(vendor, "sdk"),
        base_url=simulator.addresses.base_url(vendor),
        max_retries=0,
        http_client=httpx2.AsyncClient(verify=context),
    )


def _anthropic(simulator: Simulator, context: ssl.SSLContext) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        api_key=make_key("anthropic", "sdk"),
        base_url=simulator.addresses.base_url("anthropic"),
        max_retries=0,
        http_client=httpx2.AsyncClient(verify=context),
    )


def _check_verdict(text: str, expected: str) -> None:
    verdict = json.loads(text)
    Draft202012Validator(_GUARDRAIL).validate(verdict)
    assert verdict["verdict"] == expected
    if expected == "block":
        assert verdict["score"] > 0.5
        assert verdict["quotes"][0]["text"] in _BAD
    else:
        assert verdict["score"] < 0.5
        assert verdict["findings"] == []


@pytest.mark.parametrize(("content", "verdict"), [(_GOOD, "allow"), (_BAD, "block")])
async def test_anthropic_sdk_gets_a_verdict(
    simulator: Simulator, trusting: ssl.SSLContext, content: str, verdict: str
) -> None:
    """Native structured output and a forced tool both give a verdict that is valid for the schema."""
    async with _anthropic(simulator, trusting) as client:
        native = await client.messages.create(
            model="claude-haiku-4-5",
            max_tokens=500,
            system="Judge. FORBIDDEN things are not allowed.",
            messages=[{"role": "user", "content": content}],
            output_config={"format": {"type": "json_schema", "schema": _GUARDRAIL}},
        )
        tool = await client.messages.create(
            model="claude-haiku-4-5",
            max_tokens=500,
            messages=[{"role": "user", "content": content}],
            tools=[{"name": "judge", "input_schema": _GUARDRAIL}],
            tool_choice={"type": "tool", "name": "judge"},
        )
    assert native.stop_reason == "end_turn"
    assert native.usage.input_tokens > 0
    assert native.content[0].type == "text"
    _check_verdict(native.content[0].text, verdict)
    assert tool.stop_reason == "tool_use"
    assert tool.content[0].type == "tool_use"
    _check_verdict(json.dumps(tool.content[0].input), verdict)


async def test_anthropic_sdk_streams_what_it_would_have_got_whole(
    simulator: Simulator, trusting: ssl.SSLContext
) -> None:
    """A stream adds up to the plain answer, tokens included."""
    async with _anthropic(simulator, trusting) as client:
        plain = await client.messages.create(
            model="claude-haiku-4-5", max_tokens=500, messages=[{"role": "user", "content": _GOOD}]
        )
        async with client.messages.stream(
            model="claude-haiku-4-5", max_tokens=500, messages=[{"role": "user", "content": _GOOD}]
        ) as stream:
            streamed = await stream.get_final_message()
        models = await client.models.list()
        counted = await client.messages.count_tokens(
            model="claude-haiku-4-5", messages=[{"role": "user", "content": _GOOD}]
        )
    assert streamed.content[0].type == plain.content[0].type == "text"
    assert streamed.content[0].text == plain.content[0].text
    assert streamed.usage.output_tokens == plain.usage.output_tokens
    assert counted.input_tokens == plain.usage.input_tokens
    assert [model.id for model in models.data] == list(VENDORS["anthropic"].models)


@pytest.mark.parametrize("vendor", ["openai", "groq", "together", "fireworks", "cerebras", "deepseek", "openrouter"])
async def test_openai_sdk_gets_a_verdict_from_every_vendor_of_its_dialect(
    simulator: Simulator, trusting: ssl.SSLContext, vendor: str
) -> None:
    """Structured output is valid for the schema; a stream adds up to the plain answer."""
    async with _openai(simulator, trusting, vendor) as client:
        plain = await client.chat.completions.create(
            model="some-model",
            messages=[{"role": "system", "content": "FORBIDDEN is bad."}, {"role": "user", "content": _BAD}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "verdict", "schema": _GUARDRAIL, "strict": True},
            },
        )
        stream = await client.chat.completions.create(
            model="some-model",
            messages=[{"role": "system", "content": "FORBIDDEN is bad."}, {"role": "user", "content": _BAD}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "verdict", "schema": _GUARDRAIL, "strict": True},
            },
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    text = plain.choices[0].message.content
    assert text is not None
    _check_verdict(text, "block")
    assert plain.choices[0].finish_reason == "stop"
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == text
    usage = next(each.usage for each in chunks if each.usage is not None)
    assert plain.usage is not None
    assert usage.total_tokens == plain.usage.total_tokens > 0
    if vendor == "openrouter":
        assert (plain.usage.model_extra or {})["cost"] > 0


async def test_a_schema_in_the_prompt_is_followed_without_a_native_one(
    simulator: Simulator, trusting: ssl.SSLContext
) -> None:
    """JSON mode with the schema in words gives a valid verdict."""
    async with _openai(simulator, trusting, "deepseek") as client:
        answer = await client.chat.completions.create(
            model="deepseek-v4-flash",
            messages=[
                {"role": "system", "content": f"Answer in JSON of this schema: {json.dumps(_GUARDRAIL)} and no words."},
                {"role": "user", "content": _GOOD},
            ],
            response_format={"type": "json_object"},
        )
    text = answer.choices[0].message.content
    assert text is not None
    _check_verdict(text, "allow")


async def test_openai_sdk_reads_responses(simulator: Simulator, trusting: ssl.SSLContext) -> None:
    """The Responses API answers plainly, in a stream, and cut off at its limit."""
    form = {"format": {"type": "json_schema", "name": "verdict", "schema": _GUARDRAIL, "strict": True}}
    async with _openai(simulator, trusting) as client:
        plain = await client.responses.create(model="gpt-5-mini", input=_BAD, text=form, store=False)  # type: ignore[call-overload]  # The schema is plain data.
        cut = await client.responses.create(model="gpt-5-mini", input=_BAD, max_output_tokens=1)
        stream = await client.responses.create(model="gpt-5-mini", input=_GOOD, stream=True)
        events = [event async for event in stream]
    _check_verdict(plain.output_text, "block")
    assert plain.usage.input_tokens > 0
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert events[-1].type == "response.completed"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text


async def test_openai_sdk_reads_embeddings(simulator: Simulator, trusting: ssl.SSLContext) -> None:
    """Vectors have the asked size and norm 1, and are the same in either encoding."""
    async with _openai(simulator, trusting) as client:
        packed = await client.embeddings.create(model="text-embedding-3-small", input=["a", "b"], dimensions=1024)
        plain = await client.embeddings.create(
            model="text-embedding-3-small", input=["a"], dimensions=1024, encoding_format="float"
        )
        models = await client.models.list()
    assert [len(each.embedding) for each in packed.data] == [1024, 1024]
    assert math.isclose(sum(value * value for value in packed.data[0].embedding), 1, rel_tol=1e-5)
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert packed.data[0].embedding != packed.data[1].embedding
    assert "gpt-4o-mini" in [model.id for model in models.data]


async def test_ollama_speaks_its_native_form(simulator: Simulator) -> None:
    """Chat whole and in lines, embeddings, and what describes a model."""
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": _BAD}], "format": _GUARDRAIL}
    async with aiohttp.ClientSession() as session:
        url = simulator.addresses.base_url("ollama")
        async with session.post(f"{url}/api/chat", json=body | {"stream": False}) as response:
            whole = await response.json()
        async with session.post(f"{url}/api/chat", json=body) as response:
            lines = [json.loads(line) for line in (await response.text()).splitlines()]
        async with session.post(f"{url}/api/embed", json={"model": "mxbai-embed-large", "input": ["x"]}) as response:
            embedded = await response.json()
        async with session.post(f"{url}/api/show", json={"model": "llama3.2"}) as response:
            shown = await response.json()
        long = body | {"options": {"num_ctx": 8}}
        async with session.post(f"{url}/api/chat", json=long | {"stream": False}) as response:
            cut = await response.json()
        async with session.post(f"{url}/api/chat", json=long | {"stream": False, "truncate": False}) as response:
            assert response.status == 400
    _check_verdict(whole["message"]["content"], "block")
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"]
    assert lines[-1]["eval_count"] == whole["eval_count"] > 0
    assert len(embedded["embeddings"][0]) == 1024
    assert "completion" in shown["capabilities"]
    assert cut["prompt_eval_count"] == 8


async def test_the_output_limit_cuts_the_answer(simulator: Simulator, trusting: ssl.SSLContext) -> None:
    """A limit below the answer ends it with the vendor's word for it, and is never exceeded."""
    async with _anthropic(simulator, trusting) as client:
        cut = await client.messages.create(
            model="claude-haiku-4-5", max_tokens=3, messages=[{"role": "user", "content": _GOOD}]
        )
    assert cut.stop_reason == "max_tokens"
    assert cut.usage.output_tokens == 3


async def test_a_key_of_another_shape_gets_the_vendors_own_words(
    simulator: Simulator, trusting: ssl.SSLContext
) -> None:
    """A key that the vendor can't have issued is refused in the form that its SDK understands."""
    async with _anthropic(simulator, trusting) as client:
        client.api_key = make_key("openai", "other")
        with pytest.raises(anthropic.AuthenticationError, match="invalid x-api-key"):
            await client.messages.create(
                model="claude-haiku-4-5", max_tokens=3, messages=[{"role": "user", "content": _GOOD}]
            )
    async with _openai(simulator, trusting) as client:
        client.api_key = make_key("anthropic", "other")
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            await client.models.list()
