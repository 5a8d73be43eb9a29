"""OpenAI's Responses API."""

from typing import Any

import orjson

from testkit.simulator.answers import Answer, Finish, answer
from testkit.simulator.replies import JSON, SSE, Making, Reply, call_text_id
from testkit.simulator.requests import responses_prompt
from testkit.simulator.vendors import Vendor


def responses(_vendor: Vendor, body: dict[str, Any], making: Making) -> Reply:
    """Answer a Responses request, as a stream if it asks for one."""
    prompt = responses_prompt(body)
    said = answer(
        prompt,
        is_off_schema=making.is_off_schema,
        is_refusal=making.is_refusal,
        is_cut_short=making.is_cut_short,
    )
    whole = _response(body, said, making)
    is_streaming = bool(body.get("stream"))
    return Reply(
        status=200,
        content_type=SSE if is_streaming else JSON,
        chunks=_events(whole, said) if is_streaming else [orjson.dumps(whole)],
        input_tokens=said.input_tokens,
        output_tokens=said.output_tokens,
        is_streaming=is_streaming,
        headers={"x-request-id": f"req_{call_text_id(making.call_id)}"},
    )


def _item(said: Answer, making: Making) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
    if said.finish is Finish.REFUSAL:
        part = {"type": "refusal", "refusal": said.text}
    status = "incomplete" if said.finish is Finish.LENGTH else "completed"
    return {
        "id": f"msg_{call_text_id(making.call_id)}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [part],
    }


def _response(body: dict[str, Any], said: Answer, making: Making) -> dict[str, Any]:
    is_incomplete = said.finish is Finish.LENGTH
    output = [] if making.is_empty else [_item(said, making)]
    if body.get("reasoning"):
        output.insert(0, {"id": f"rs_{call_text_id(making.call_id)}", "type": "reasoning", "summary": []})
    whole: dict[str, Any] = {
        "id": f"resp_{call_text_id(making.call_id)}",
        "object": "response",
        "created_at": making.now,
        "status": "incomplete" if is_incomplete else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_incomplete else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": {},
        "model": body.get("model"),
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": body.get("reasoning") or {"effort": None, "summary": None},
        "service_tier": "default",
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
    }
    if making.has_usage:
        whole["usage"] = {
            "input_tokens": said.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": said.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": said.input_tokens + said.output_tokens,
        }
    return whole


def _events(whole: dict[str, Any], said: Answer) -> list[bytes]:
    started = whole | {"status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    fields: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": started}),
        ("response.in_progress", {"response": started}),
    ]
    for index, item in enumerate(whole["output"]):
        at = {"output_index": index}
        fields.append(("response.output_item.added", at | {"item": item | {"content": [], "status": "in_progress"}}))
        if item["type"] == "message":
            fields += _text_events(item, said, at)
        fields.append(("response.output_item.done", at | {"item": item}))
    fields.append((f"response.{whole['status']}", {"response": whole}))
    return [_event(name, number, each) for number, (name, each) in enumerate(fields)]


def _text_events(item: dict[str, Any], said: Answer, at: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    at = at | {"item_id": item["id"], "content_index": 0}
    part = item["content"][0]
    rest: dict[str, Any]
    if part["type"] == "refusal":
        name, key, rest = "response.refusal", "refusal", {}
    else:
        name, key, rest = "response.output_text", "text", {"logprobs": []}
    return [
        ("response.content_part.added", at | {"part": part | {key: ""}}),
        *((f"{name}.delta", at | rest | {"delta": piece}) for piece in said.pieces),
        (f"{name}.done", at | rest | {key: said.text}),
        ("response.content_part.done", at | {"part": part}),
    ]


def _event(name: str, number: int, fields: dict[str, Any]) -> bytes:
    data = orjson.dumps({"type": name, "sequence_number": number} | fields)
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
