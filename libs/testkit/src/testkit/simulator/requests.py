"""Reads what was asked out of each dialect's request."""

from typing import Any

from testkit.simulator.answers import Prompt


def text_of(content: Any) -> str:
    """Return the text of a message's content, in any of the forms that vendors take."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = []
    for part in content:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, dict):
            parts.append(part.get("text") or text_of(part.get("content")))
    return "\n".join(parts)


def anthropic_prompt(body: dict[str, Any]) -> Prompt:
    """Read a Messages request."""
    messages = body.get("messages", [])
    schema = (body.get("output_config") or {}).get("format") or body.get("output_format") or {}
    tool = forced_tool(body)
    return Prompt(
        model=str(body.get("model", "")),
        system=text_of(body.get("system")),
        user=_joined(messages, "user"),
        messages=len(messages),
        schema=schema.get("schema") or (tool or {}).get("input_schema"),
        output_tokens_max=body.get("max_tokens"),
    )


def forced_tool(body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the tool that a Messages request demands, if it demands one."""
    choice = body.get("tool_choice") or {}
    tools: list[dict[str, Any]] = body.get("tools") or []
    if choice.get("type") == "tool":
        return next((tool for tool in tools if tool.get("name") == choice.get("name")), None)
    return tools[0] if choice.get("type") == "any" and tools else None


def chat_prompt(body: dict[str, Any]) -> Prompt:
    """Read a Chat Completions request."""
    messages = body.get("messages", [])
    response_format = body.get("response_format") or {}
    function = forced_function(body)
    return Prompt(
        model=str(body.get("model", "")),
        system=_joined(messages, "system", "developer"),
        user=_joined(messages, "user"),
        messages=len(messages),
        schema=(response_format.get("json_schema") or {}).get("schema")
        or response_format.get("schema")
        or (function or {}).get("parameters"),
        wants_json=response_format.get("type") in ("json_object", "json_schema"),
        output_tokens_max=body.get("max_completion_tokens") or body.get("max_tokens"),
    )


def forced_function(body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the function that a Chat Completions request demands, if it demands one."""
    choice = body.get("tool_choice")
    functions = [tool.get("function", {}) for tool in body.get("tools") or []]
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        return next((each for each in functions if each.get("name") == name), None)
    return functions[0] if choice == "required" and functions else None


def responses_prompt(body: dict[str, Any]) -> Prompt:
    """Read a Responses request."""
    given = body.get("input", "")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    form = (body.get("text") or {}).get("format") or {}
    system = "\n".join(filter(None, [body.get("instructions") or "", _joined(messages, "system", "developer")]))
    return Prompt(
        model=str(body.get("model", "")),
        system=system,
        user=_joined(messages, "user"),
        messages=len(messages),
        schema=form.get("schema"),
        wants_json=form.get("type") in ("json_object", "json_schema"),
        output_tokens_max=body.get("max_output_tokens"),
    )


def ollama_prompt(body: dict[str, Any]) -> Prompt:
    """Read an /api/chat request."""
    messages = body.get("messages", [])
    form = body.get("format")
    limit = (body.get("options") or {}).get("num_predict")
    return Prompt(
        model=str(body.get("model", "")),
        system=_joined(messages, "system"),
        user=_joined(messages, "user"),
        messages=len(messages),
        schema=form if isinstance(form, dict) else None,
        wants_json=bool(form),
        output_tokens_max=limit if limit and limit > 0 else None,
    )


def texts_of(body: dict[str, Any]) -> list[str]:
    """Return the texts of an embedding request."""
    given = body.get("input", [])
    return [given] if isinstance(given, str) else [str(text) for text in given]


def _joined(messages: list[dict[str, Any]], *roles: str) -> str:
    return "\n".join(text_of(each.get("content")) for each in messages if each.get("role") in roles)
