"""Anthropic's Messages API."""

from typing import Any

import orjson

from testkit.simulator.answers import Answer, Finish, answer, input_tokens
from testkit.simulator.replies import JSON, SSE, Making, Reply, call_text_id
from testkit.simulator.requests import anthropic_prompt, forced_tool
from testkit.simulator.vendors import Vendor

_STOP_REASONS = {Finish.STOP: "end_turn", Finish.LENGTH: "max_tokens", Finish.REFUSAL: "refusal"}


def messages(_vendor: Vendor, body: dict[str, Any], making: Making) -> Reply:
    """Answer a Messages request, as a stream if it asks for one."""
    prompt = anthropic_prompt(body)
    said = answer(
        prompt,
        is_off_schema=making.is_off_schema,
        is_refusal=making.is_refusal,
        is_cut_short=making.is_cut_short,
    )
    tool = None if said.finish is Finish.REFUSAL else forced_tool(body)
    message = _message(prompt.model, said, making)
    message["content"] = [] if making.is_empty else [_block(said, tool, making)]
    message["stop_reason"] = "tool_use" if tool and said.finish is Finish.STOP else _STOP_REASONS[said.finish]
    headers = {"request-id": f"req_{call_text_id(making.call_id)}"}
    if body.get("stream"):
        return Reply(
            status=200,
            content_type=SSE,
            chunks=_events(message, said, tool, making),
            input_tokens=said.input_tokens,
            output_tokens=said.output_tokens,
            is_streaming=True,
            headers=headers,
        )
    return Reply(
        status=200,
        content_type=JSON,
        chunks=[orjson.dumps(message)],
        input_tokens=said.input_tokens,
        output_tokens=said.output_tokens,
        headers=headers,
    )


def count_tokens(_vendor: Vendor, body: dict[str, Any], _making: Making) -> Reply:
    """Say how many tokens a request would be."""
    count = orjson.dumps({"input_tokens": input_tokens(anthropic_prompt(body))})
    return Reply(status=200, content_type=JSON, chunks=[count])


def models(vendor: Vendor, _body: dict[str, Any], _making: Making) -> Reply:
    """List the models."""
    data = [
        {"type": "model", "id": each, "display_name": each.title(), "created_at": "2025-10-01T00:00:00Z"}
        for each in vendor.models
    ]
    page = {"data": data, "has_more": False, "first_id": vendor.models[0], "last_id": vendor.models[-1]}
    return Reply(status=200, content_type=JSON, chunks=[orjson.dumps(page)])


def _usage(said: Answer) -> dict[str, Any]:
    return {
        "input_tokens": said.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": said.output_tokens,
        "service_tier": "standard",
        "inference_geo": "not_available",
    }


def _message(model: str, said: Answer, making: Making) -> dict[str, Any]:
    message: dict[str, Any] = {
        "id": f"msg_{call_text_id(making.call_id)}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    if making.has_usage:
        message["usage"] = _usage(said)
    return message


def _block(said: Answer, tool: dict[str, Any] | None, making: Making) -> dict[str, Any]:
    if tool is None:
        return {"type": "text", "text": said.text}
    # A cut-off tool call arrives as whatever could be parsed of it: nothing.
    given = {} if said.finish is Finish.LENGTH else orjson.loads(said.text)
    return {"type": "tool_use", "id": f"toolu_{call_text_id(making.call_id)}", "name": tool["name"], "input": given}


def _events(message: dict[str, Any], said: Answer, tool: dict[str, Any] | None, making: Making) -> list[bytes]:
    start = message | {"content": [], "stop_reason": None}
    if "usage" in start:
        start["usage"] = start["usage"] | {"output_tokens": 1}
    events = [_event("message_start", {"message": start})]
    if message["content"]:
        nothing: dict[str, Any] = {"text": ""} if tool is None else {"input": {}}
        empty = message["content"][0] | nothing
        events += [_event("content_block_start", {"index": 0, "content_block": empty}), _event("ping", {})]
        for piece in said.pieces:
            kind = ("text_delta", "text") if tool is None else ("input_json_delta", "partial_json")
            delta = {"type": kind[0], kind[1]: piece}
            events.append(_event("content_block_delta", {"index": 0, "delta": delta}))
        events.append(_event("content_block_stop", {"index": 0}))
    last: dict[str, Any] = {"delta": {"stop_reason": message["stop_reason"], "stop_sequence": None}}
    if making.has_usage:
        last["usage"] = {"output_tokens": said.output_tokens}
    return [*events, _event("message_delta", last), _event("message_stop", {})]


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps({"type": name} | fields))
