"""OpenAI's Chat Completions, Embeddings and Models, and what other vendors make of them."""

import base64
import struct
from typing import Any

import orjson

from testkit.simulator.answers import Answer, Finish, answer, count_tokens, embed
from testkit.simulator.replies import JSON, SSE, Making, Reply, call_text_id
from testkit.simulator.requests import chat_prompt, forced_function, texts_of
from testkit.simulator.vendors import Vendor

_FINISH_REASONS = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.REFUSAL: "stop"}
_DIMENSIONS = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
    "qwen3-embedding-8b": 4096,
    "nomic-embed-text-v1.5": 768,
}
_DIMENSIONS_DEFAULT = 1024
_FIXED_DIMENSIONS = ("text-embedding-ada-002", "intfloat/multilingual-e5-large-instruct")
_TEXTS_MAX = 2048
_TOKENS_PER_TEXT_MAX = 8192


def chat_completions(vendor: Vendor, body: dict[str, Any], making: Making) -> Reply:
    """Answer a Chat Completions request, as a stream if it asks for one."""
    prompt = chat_prompt(body)
    said = answer(
        prompt,
        is_off_schema=making.is_off_schema,
        is_refusal=making.is_refusal,
        is_cut_short=making.is_cut_short,
    )
    function = None if said.finish is Finish.REFUSAL else forced_function(body)
    finish = "tool_calls" if function and said.finish is Finish.STOP else _FINISH_REASONS[said.finish]
    usage = _usage(vendor, said) if making.has_usage else None
    head = _head(vendor, prompt.model, making)
    if body.get("stream"):
        includes_usage = bool((body.get("stream_options") or {}).get("include_usage")) or vendor.slug != "openai"
        chunks = _stream(vendor, head, said, function, finish, usage if includes_usage else None)
        return _reply(said, chunks, SSE, making, is_streaming=True)
    message = _message(vendor, said, function, making)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    if vendor.slug == "openrouter":
        choice["native_finish_reason"] = finish
    whole = head | {"object": "chat.completion", "choices": [choice]}
    if usage is not None:
        whole["usage"] = usage
    return _reply(said, [orjson.dumps(whole)], JSON, making, is_streaming=False)


def embeddings(vendor: Vendor, body: dict[str, Any], making: Making) -> Reply:
    """Answer an Embeddings request with vectors of norm 1."""
    model, texts = str(body.get("model", "")), texts_of(body)
    short = model.rsplit("/", 1)[-1]
    natural = _DIMENSIONS.get(short, _DIMENSIONS_DEFAULT)
    asked = body.get("dimensions")
    refusal = _embedding_refusal(model, texts, asked)
    if refusal is not None:
        return refusal
    tokens = sum(count_tokens(text) for text in texts)
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(body, embed(short, text, asked or natural))}
        for index, text in enumerate(texts)
    ]
    whole: dict[str, Any] = {"object": "list", "data": data, "model": model}
    if making.has_usage:
        whole["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        if vendor.slug == "openrouter":
            whole["usage"]["cost"] = tokens * 20 / 1e9
    return Reply(
        status=200, content_type=JSON, chunks=[orjson.dumps(whole)], input_tokens=tokens, headers=_headers(making)
    )


def models(vendor: Vendor, _body: dict[str, Any], _making: Making) -> Reply:
    """List the models."""
    data = [
        {"id": each, "object": "model", "created": 1_700_000_000, "owned_by": vendor.slug} for each in vendor.models
    ]
    # Together answers with a bare list.
    page: Any = data if vendor.slug == "together" else {"object": "list", "data": data}
    return Reply(status=200, content_type=JSON, chunks=[orjson.dumps(page)])


def _embedding_refusal(model: str, texts: list[str], dimensions: int | None) -> Reply | None:
    message = ""
    if not texts or "" in texts:
        message = (
            "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference."
        )
    elif len(texts) > _TEXTS_MAX:
        message = f"Invalid 'input': array too long. Expected an array with maximum length {_TEXTS_MAX}."
    elif dimensions is not None and model in _FIXED_DIMENSIONS:
        message = "This model does not support specifying dimensions."
    elif max(count_tokens(text) for text in texts) > _TOKENS_PER_TEXT_MAX:
        message = f"This model's maximum context length is {_TOKENS_PER_TEXT_MAX} tokens. Please reduce your prompt."
    if not message:
        return None
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return Reply(status=400, content_type=JSON, chunks=[orjson.dumps({"error": error})])


def _encoded(body: dict[str, Any], vector: list[float]) -> Any:
    if body.get("encoding_format") == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return vector


def _headers(making: Making) -> dict[str, str]:
    return {
        "x-request-id": f"req_{call_text_id(making.call_id)}",
        "openai-processing-ms": "5",
        "x-ratelimit-limit-requests": "30000",
        "x-ratelimit-remaining-requests": "29999",
        "x-ratelimit-reset-requests": "2ms",
    }


def _head(vendor: Vendor, model: str, making: Making) -> dict[str, Any]:
    head: dict[str, Any] = {
        "id": f"chatcmpl-{call_text_id(making.call_id)}",
        "object": "chat.completion.chunk",
        "created": making.now,
        "model": model,
        "system_fingerprint": "fp_simulated",
    }
    if vendor.slug == "openai":
        head["service_tier"] = "default"
    elif vendor.slug == "openrouter":
        head["id"] = f"gen-{making.now}-{call_text_id(making.call_id, 20)}"
        head["provider"] = "OpenAI"
    elif vendor.slug == "groq":
        head["x_groq"] = {"id": f"req_{call_text_id(making.call_id)}"}
    return head


def _usage(vendor: Vendor, said: Answer) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": said.input_tokens,
        "completion_tokens": said.output_tokens,
        "total_tokens": said.input_tokens + said.output_tokens,
    }
    if vendor.slug == "deepseek":
        return usage | {"prompt_cache_hit_tokens": 0, "prompt_cache_miss_tokens": said.input_tokens}
    usage["prompt_tokens_details"] = {"cached_tokens": 0, "audio_tokens": 0}
    usage["completion_tokens_details"] = {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    }
    if vendor.slug == "openrouter":
        nano_usd = said.input_tokens * vendor.nano_usd_per_input_token
        nano_usd += said.output_tokens * vendor.nano_usd_per_output_token
        usage |= {"cost": nano_usd / 1e9, "is_byok": False, "cost_details": {"upstream_inference_cost": nano_usd / 1e9}}
    return usage


def _message(vendor: Vendor, said: Answer, function: dict[str, Any] | None, making: Making) -> dict[str, Any]:
    is_refusal = said.finish is Finish.REFUSAL and vendor.slug == "openai"
    content = None if is_refusal or function or making.is_empty else said.text
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if vendor.slug in ("openai", "openrouter"):
        message["refusal"] = said.text if is_refusal else None
    if function:
        call = {"name": function["name"], "arguments": said.text}
        message["tool_calls"] = [{"id": f"call_{call_text_id(making.call_id)}", "type": "function", "function": call}]
    return message


def _stream(
    vendor: Vendor,
    head: dict[str, Any],
    said: Answer,
    function: dict[str, Any] | None,
    finish: str,
    usage: dict[str, Any] | None,
) -> list[bytes]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None if function else ""}]
    for index, piece in enumerate(said.pieces):
        if function:
            name = {"name": function["name"]} if index == 0 else {}
            call: dict[str, Any] = {"index": 0, "function": name | {"arguments": piece}}
            deltas.append({"tool_calls": [call | ({"id": "call_SIM", "type": "function"} if index == 0 else {})]})
        elif said.finish is Finish.REFUSAL and vendor.slug == "openai":
            deltas.append({"refusal": piece})
        else:
            deltas.append({"content": piece})
    chunks = [_chunk(head | {"choices": [{"index": 0, "delta": each, "finish_reason": None}]}) for each in deltas]
    if vendor.slug == "openrouter":
        chunks.insert(0, b": OPENROUTER PROCESSING\n\n")
    last = head | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
    if usage is None:
        return [*chunks, _chunk(last), b"data: [DONE]\n\n"]
    # OpenAI sends usage in an event of its own; the others with the last choice.
    if vendor.slug == "openai":
        return [*chunks, _chunk(last), _chunk(head | {"choices": [], "usage": usage}), b"data: [DONE]\n\n"]
    return [*chunks, _chunk(last | {"usage": usage}), b"data: [DONE]\n\n"]


def _chunk(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


def _reply(said: Answer, chunks: list[bytes], content_type: str, making: Making, *, is_streaming: bool) -> Reply:
    return Reply(
        status=200,
        content_type=content_type,
        chunks=chunks,
        input_tokens=said.input_tokens,
        output_tokens=said.output_tokens,
        is_streaming=is_streaming,
        headers=_headers(making),
    )
