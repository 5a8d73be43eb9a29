"""Embeddings in OpenAI's form, for OpenAI and for the vendors of its dialect."""

from __future__ import annotations

import base64
import binascii
import sys
from array import array
from typing import TYPE_CHECKING

from typing_extensions import override

from router.domain.codecs import EmbeddingCodec
from router.domain.embeddings import EmbeddingResult, Vector, l2_normalized
from router.domain.wire import WireRequest
from router.providers.dialects import vendor
from router.providers.failures import malformed, success_body
from router.providers.json_reading import Json, count_of, object_of, objects_of, text_of, write
from router.providers.openai_chat import BEARER, json_headers
from router.providers.openai_usage import cost_nano_usd, usage_from

if TYPE_CHECKING:
    from router.domain.embeddings import EmbedCall
    from router.domain.routes import Route
    from router.domain.wire import WireResponse


class OpenAIEmbeddingCodec(EmbeddingCodec):
    """The codec of ``/embeddings``, on any host."""

    @override
    def build_embed(self, call: EmbedCall, route: Route, /) -> WireRequest:
        quirks = vendor(route.vendor)
        facts = route.model.embedding
        body: Json = {
            "model": route.model.model_id,
            "input": list(call.texts),
            "encoding_format": "base64" if quirks.base64_vectors else "float",
        }
        if facts is not None and facts.takes_dimensions and quirks.takes_embedding_dimensions:
            body["dimensions"] = call.dimensions
        return WireRequest(
            method="POST", url=route.url("/embeddings"), headers=json_headers(), body=write(body), auth=BEARER
        )

    @override
    def parse_embed(self, response: WireResponse, call: EmbedCall, route: Route, /) -> EmbeddingResult:
        body = success_body(response, route, vendor(route.vendor).failures)
        rows = sorted(objects_of(body, "data"), key=lambda row: count_of(row, "index"))
        try:
            vectors = tuple(read_vector(row.get("embedding")) for row in rows)
        except ValueError:
            raise malformed(response, route.provider, "vector") from None
        check_vectors(vectors, call, response, route)
        model = text_of(body, "model") or route.model.model_id
        usage = object_of(body, "usage")
        return EmbeddingResult(
            vectors=vectors,
            usage=usage_from(usage, model),
            model=model,
            dimensions=call.dimensions,
            provider_cost_nano_usd=cost_nano_usd(usage) if vendor(route.vendor).reports_cost else None,
        )


def read_vector(value: object) -> Vector:
    """Return a vector of length one from numbers, or from base64 of little-endian single-precision numbers.

    Raises:
        ValueError: It is neither, or has no direction.
    """
    if isinstance(value, str):
        numbers = array("f")
        try:
            numbers.frombytes(base64.b64decode(value, validate=True))
        except binascii.Error as error:
            message = "no base64"
            raise ValueError(message) from error
        if sys.byteorder == "big":
            numbers.byteswap()
        return l2_normalized(numbers)
    if not isinstance(value, list):
        message = "no vector"
        raise ValueError(message)  # noqa: TRY004 - the vendor's data is wrong, not our caller's type
    try:
        return l2_normalized(value)
    except (TypeError, OverflowError) as error:
        message = "no numbers"
        raise ValueError(message) from error


def check_vectors(vectors: tuple[Vector, ...], call: EmbedCall, response: WireResponse, route: Route) -> None:
    """Check that there is one vector for each text and that each has the size asked for.

    Raises:
        MalformedAnswerError: A vector is missing, too many, or of another size.
    """
    if len(vectors) != len(call.texts):
        raise malformed(response, route.provider, "vector_count")
    if any(len(vector) != call.dimensions for vector in vectors):
        raise malformed(response, route.provider, "vector_size")
