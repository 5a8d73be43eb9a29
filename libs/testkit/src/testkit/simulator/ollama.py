"""Ollama's native API.

Like the real one it cuts a prompt that does not fit `num_ctx` without a word, unless truncation is switched off.
"""

from datetime import UTC, datetime
from typing import Any

import orjson

from testkit.simulator.answers import Answer, Finish, Prompt, answer, count_tokens, embed, input_tokens
from testkit.simulator.replies import JSON, NDJSON, Making, Reply
from testkit.simulator.requests import ollama_prompt, texts_of
from testkit.simulator.vendors import Vendor

_CONTEXT_DEFAULT = 4096
_CONTEXT_OF_MODEL = 131_072
_DIMENSIONS = {"nomic-embed-text": 768, "mxbai-embed-large": 1024, "bge-m3": 1024, "all-minilm": 384}
_VERSION = "0.13.5"
_DONE_REASONS = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.REFUSAL: "stop"}


def chat(_vendor: Vendor, body: dict[str, Any], making: Making) -> Reply:
    """Answer an /api/chat request; like Ollama, as a stream unless told otherwise."""
    prompt = ollama_prompt(body)
    context = (body.get("options") or {}).get("num_ctx") or _CONTEXT_DEFAULT
    needed = input_tokens(prompt)
    if needed > context and body.get("truncate") is False:
        return _error(400, f"prompt too long; exceeded max context length by {needed - context} tokens")
    said = answer(
        prompt,
        is_off_schema=making.is_off_schema,
        is_refusal=making.is_refusal,
        is_cut_short=making.is_cut_short,
    )
    read = min(needed, context)
    is_streaming = bool(body.get("stream", True))
    last = _line(prompt, making, "" if is_streaming or making.is_empty else said.text) | _end(said, read, making)
    chunks = [orjson.dumps(last) + b"\n"]
    if is_streaming:
        pieces = [orjson.dumps(_line(prompt, making, piece)) + b"\n" for piece in said.pieces]
        chunks = [*pieces, *chunks]
    return Reply(
        status=200,
        content_type=NDJSON if is_streaming else "application/json; charset=utf-8",
        chunks=chunks,
        input_tokens=read,
        output_tokens=said.output_tokens,
        is_streaming=is_streaming,
    )


def embed_texts(_vendor: Vendor, body: dict[str, Any], _making: Making) -> Reply:
    """Answer an /api/embed request with vectors of norm 1."""
    model, texts = str(body.get("model", "")), texts_of(body)
    context = (body.get("options") or {}).get("num_ctx") or _CONTEXT_DEFAULT
    counts = [count_tokens(text) for text in texts]
    if body.get("truncate") is False and max(counts, default=0) > context:
        return _error(400, "the input length exceeds the context length")
    short = model.split(":", 1)[0]
    dimensions = body.get("dimensions") or _DIMENSIONS.get(short, 1024)
    tokens = sum(min(count, context) for count in counts)
    whole = {
        "model": model,
        "embeddings": [embed(short, text, dimensions) for text in texts],
        "total_duration": 14_143_917,
        "load_duration": 1_019_500,
        "prompt_eval_count": tokens,
    }
    return Reply(status=200, content_type=JSON, chunks=[orjson.dumps(whole)], input_tokens=tokens)


def show(vendor: Vendor, body: dict[str, Any], _making: Making) -> Reply:
    """Describe a model."""
    model = str(body.get("model", ""))
    is_embedder = "embed" in model or model.startswith(("bge", "all-minilm"))
    whole = {
        "details": {"format": "gguf", "family": "llama", "parameter_size": "3.2B", "quantization_level": "Q4_K_M"},
        "model_info": {
            "general.architecture": "llama",
            "llama.context_length": _CONTEXT_OF_MODEL,
            "llama.embedding_length": _DIMENSIONS.get(model.split(":", 1)[0], 1024),
        },
        "capabilities": ["embedding"] if is_embedder else ["completion", "tools"],
    }
    known = {model for each in vendor.models for model in (each, each.split(":", 1)[0])}
    return _json(whole) if model in known else _error(404, f"model '{model}' not found")


def tags(vendor: Vendor, _body: dict[str, Any], _making: Making) -> Reply:
    """List the models."""
    models = [
        {"name": each, "model": each, "modified_at": "2026-01-01T00:00:00Z", "size": 2_019_393_189, "digest": "0" * 64}
        for each in vendor.models
    ]
    return _json({"models": models})


def version(_vendor: Vendor, _body: dict[str, Any], _making: Making) -> Reply:
    """Say which version this is."""
    return _json({"version": _VERSION})


def _line(prompt: Prompt, making: Making, text: str) -> dict[str, Any]:
    created = datetime.fromtimestamp(making.now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    message = {"role": "assistant", "content": text}
    return {"model": prompt.model, "created_at": created, "message": message, "done": False}


def _end(said: Answer, read: int, making: Making) -> dict[str, Any]:
    end: dict[str, Any] = {"done": True, "done_reason": _DONE_REASONS[said.finish]}
    if making.has_usage:
        counts = {"prompt_eval_count": read, "eval_count": said.output_tokens}
        end |= {"total_duration": 50_000_000, "load_duration": 1_000_000, "eval_duration": 40_000_000} | counts
    return end


def _json(whole: dict[str, Any]) -> Reply:
    return Reply(status=200, content_type="application/json; charset=utf-8", chunks=[orjson.dumps(whole)])


def _error(status: int, message: str) -> Reply:
    return Reply(status=status, content_type=JSON, chunks=[orjson.dumps({"error": message})])
