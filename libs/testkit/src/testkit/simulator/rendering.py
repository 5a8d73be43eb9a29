"""Which function renders which route."""

from collections.abc import Callable
from typing import Any

from testkit.simulator import anthropic, ollama, openai, openai_responses
from testkit.simulator.replies import Making, Reply
from testkit.simulator.vendors import Dialect, Endpoint, Route, Vendor

_Renderer = Callable[[Vendor, dict[str, Any], Making], Reply]

_RENDERERS: dict[Route, _Renderer] = {
    Route.MESSAGES: anthropic.messages,
    Route.COUNT_TOKENS: anthropic.count_tokens,
    Route.CHAT_COMPLETIONS: openai.chat_completions,
    Route.RESPONSES: openai_responses.responses,
    Route.EMBEDDINGS: openai.embeddings,
    Route.OLLAMA_CHAT: ollama.chat,
    Route.OLLAMA_EMBED: ollama.embed_texts,
    Route.OLLAMA_SHOW: ollama.show,
    Route.OLLAMA_TAGS: ollama.tags,
    Route.OLLAMA_VERSION: ollama.version,
}

METHODS = {
    route: "GET" if route in (Route.MODELS, Route.OLLAMA_TAGS, Route.OLLAMA_VERSION) else "POST" for route in Route
}


def render(endpoint: Endpoint, body: dict[str, Any], making: Making) -> Reply:
    """Return the endpoint's answer to a well-formed request."""
    if endpoint.route is Route.MODELS:
        listing = anthropic.models if endpoint.vendor.dialect is Dialect.ANTHROPIC else openai.models
        return listing(endpoint.vendor, body, making)
    return _RENDERERS[endpoint.route](endpoint.vendor, body, making)
