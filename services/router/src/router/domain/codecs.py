"""What a provider's codec promises: pure translation between normalized calls and bytes, no I/O and no key.

The codecs themselves live in ``router.providers``; use cases and transports know only these protocols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from router.domain.completions import ChatCall, Completion, Delta
    from router.domain.embeddings import EmbedCall, EmbeddingResult
    from router.domain.errors import ProviderError
    from router.domain.routes import Route
    from router.domain.usage import Usage
    from router.domain.wire import WireRequest, WireResponse


class StreamDecoder(Protocol):
    """The state of one streamed answer.

    How the bytes are cut makes no difference: a byte at a time or all at once give the same deltas and the same end.
    """

    @property
    def failure(self) -> ProviderError | None:
        """The error that the vendor sent inside the stream; nothing after it is read."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the vendor's last event has come, so that the connection may be given back."""
        ...

    @property
    def usage(self) -> Usage:
        """The last cumulative counts seen; flagged until the final ones have come."""
        ...

    @property
    def received_text_bytes(self) -> int:
        """How much text of any kind has come: the ground for an estimate where no final count comes."""
        ...

    def feed(self, chunk: bytes, /) -> list[Delta]:
        """Take bytes as they came and return what they complete. Never raises."""
        ...

    def finish(self) -> Completion:
        """Return the whole answer, once the connection has ended or ``is_complete``.

        Raises:
            ProviderError: What the vendor sent, or that the stream was cut; its ``usage`` says what was consumed.
        """
        ...


class Codec(Protocol):
    """One dialect's chat form, its model listing and its table of errors."""

    def build_chat(self, call: ChatCall, route: Route, /) -> WireRequest:
        """Return the request; its body's length is the basis of the reserve."""
        ...

    def parse_chat(self, response: WireResponse, route: Route, /) -> Completion:
        """Return the answer.

        Raises:
            ProviderError: The status or the body is an error, or the body is not the vendor's form.
        """
        ...

    def decode_stream(self, response: WireResponse, route: Route, /) -> StreamDecoder:
        """Open a decoder for a streamed answer whose head is ``response`` (its body is not looked at)."""
        ...

    def classify(self, response: WireResponse, route: Route, /) -> ProviderError:
        """Return the normalized error of an answer that is one, body before status."""
        ...

    def build_list_models(self, route: Route, /) -> WireRequest:
        """Return the request that lists models, which costs nothing."""
        ...

    def parse_models(self, response: WireResponse, route: Route, /) -> tuple[str, ...]:
        """Return the ids of the models that the key may use.

        Raises:
            ProviderError: As for ``parse_chat``.
        """
        ...


class EmbeddingCodec(Protocol):
    """One dialect's embedding form."""

    def build_embed(self, call: EmbedCall, route: Route, /) -> WireRequest:
        """Return the request for one batch."""
        ...

    def parse_embed(self, response: WireResponse, call: EmbedCall, route: Route, /) -> EmbeddingResult:
        """Return the vectors, in the order of the call's texts.

        Raises:
            ProviderError: As for ``parse_chat``; also when vectors are missing or of another size.
        """
        ...


class CodecRegistry(Protocol):
    """Where use cases find the codec of a route."""

    def chat(self, route: Route, /) -> Codec:
        """Return the codec for chat, listing and errors of the route."""
        ...

    def embedding(self, route: Route, /) -> EmbeddingCodec:
        """Return the codec for embeddings.

        Raises:
            EmbeddingsUnsupportedError: The provider has no embedding endpoint.
        """
        ...
