"""Finds the codec of a route by its dialect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from catalogue.models import Dialect
from router.domain.codecs import CodecRegistry
from router.domain.errors import EmbeddingsUnsupportedError
from router.providers.anthropic import AnthropicCodec
from router.providers.ollama import OllamaCodec
from router.providers.openai_chat import OpenAIChatCodec
from router.providers.openai_embeddings import OpenAIEmbeddingCodec
from router.providers.openai_responses import OpenAIResponsesCodec

if TYPE_CHECKING:
    from router.domain.codecs import Codec, EmbeddingCodec
    from router.domain.routes import Route


class Codecs(CodecRegistry):
    """All codecs of the suite; they hold no state, so one of each serves every call."""

    def __init__(self) -> None:
        ollama = OllamaCodec()
        embeddings = OpenAIEmbeddingCodec()
        self._chat: dict[Dialect, Codec] = {
            Dialect.ANTHROPIC_MESSAGES: AnthropicCodec(),
            Dialect.OPENAI_CHAT: OpenAIChatCodec(),
            Dialect.OPENAI_RESPONSES: OpenAIResponsesCodec(),
            Dialect.OLLAMA: ollama,
        }
        self._embedding: dict[Dialect, EmbeddingCodec] = {
            Dialect.OPENAI_CHAT: embeddings,
            Dialect.OPENAI_RESPONSES: embeddings,
            Dialect.OLLAMA: ollama,
        }

    @override
    def chat(self, route: Route, /) -> Codec:
        return self._chat[route.dialect]

    @override
    def embedding(self, route: Route, /) -> EmbeddingCodec:
        codec = self._embedding.get(route.dialect)
        if codec is None:
            raise EmbeddingsUnsupportedError(provider=route.provider, rule="codec.no_embeddings")
        return codec
