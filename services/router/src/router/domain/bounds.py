"""The bound that makes a cap hard: the most that a call can cost, known before it is made.

Text cannot make more tokens than its request has bytes; what a vendor adds on its own (tool instructions, message
framing) is a reviewed overhead, and an image is bounded by its pixels instead of its bytes. Where something can be
billed that no byte of the request shows (vendor-run tools, media by URL), there is no such bound, and the call is
refused unless the mapping allows it and the operator's ceiling is reserved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from catalogue.models import ImageKind, ImageRule, Overhead

if TYPE_CHECKING:
    from catalogue.book import Catalogue
    from router.domain.completions import ChatCall, ImagePart
    from router.domain.embeddings import EmbedCall
    from router.domain.routes import Route

_TILE_PX: Final = 512
_TILED_SHORT_SIDE_PX: Final = 768
_TILED_LONG_SIDE_PX: Final = 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class CallShape:
    """What a request holds, as far as its bound depends on it.

    Attributes:
        text_bytes: The request's bytes without its images' data.
        messages: How many messages it has, the instructions included.
        has_tools: Whether it declares tools that the caller runs.
        has_schema: Whether its answer is held to a schema.
        images_px: Width and height of each image.
        candidates: How many answers are asked for.
    """

    text_bytes: int
    messages: int = 1
    has_tools: bool = False
    has_schema: bool = False
    images_px: tuple[tuple[int, int], ...] = ()
    candidates: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBound:
    """The most tokens that a call can use."""

    input_tokens: int
    output_tokens: int


def token_bound(shape: CallShape, overhead: Overhead, image_rule: ImageRule, *, output_tokens_max: int) -> TokenBound:
    """Return the bound of a request of a shape."""
    extra = overhead.base + overhead.each_message * shape.messages
    extra += overhead.tools if shape.has_tools else 0
    extra += overhead.schema if shape.has_schema else 0
    images = sum(image_tokens_bound(image_rule, width, height) for width, height in shape.images_px)
    return TokenBound(
        input_tokens=(shape.text_bytes + extra + images) * shape.candidates,
        output_tokens=output_tokens_max * shape.candidates,
    )


def chat_bound(call: ChatCall, body_bytes: int, route: Route, catalogue: Catalogue) -> TokenBound:
    """Return the bound of a normalized call whose request has ``body_bytes`` bytes."""
    images = call.images
    shape = CallShape(
        text_bytes=body_bytes - sum(_base64_bytes(image) for image in images),
        messages=len(call.messages) + 1,
        has_schema=call.schema is not None,
        images_px=tuple((image.width_px, image.height_px) for image in images),
    )
    overhead = catalogue.overheads(route.provider, route.model.model_id)
    rule = catalogue.image_rule(route.model.image)
    return token_bound(shape, overhead, rule, output_tokens_max=call.output_tokens_max)


def embed_bound(call: EmbedCall, body_bytes: int, route: Route, catalogue: Catalogue) -> TokenBound:
    """Return the bound of an embedding request; each text may be framed like a message."""
    shape = CallShape(text_bytes=body_bytes, messages=len(call.texts))
    overhead = catalogue.overheads(route.provider, route.model.model_id)
    return token_bound(shape, overhead, catalogue.image_rule("unknown"), output_tokens_max=0)


def image_tokens_bound(rule: ImageRule, width_px: int, height_px: int) -> int:
    """Return the most tokens that a vendor makes of an image of a size."""
    units = _UNITS[rule.kind](rule, max(1, width_px), max(1, height_px))
    if rule.units_max is not None:
        units = min(units, rule.units_max)
    return rule.base + math.ceil(units * rule.each)


def _area(rule: ImageRule, width: int, height: int) -> int:
    return math.ceil(width * height / rule.unit_px)


def _patches(rule: ImageRule, width: int, height: int) -> int:
    return math.ceil(width / rule.unit_px) * math.ceil(height / rule.unit_px)


def _tiles(_: ImageRule, width: int, height: int) -> int:
    # The vendor scales the shorter side to 768 pixels, up as well as down, and then the longer one to 2048 at most.
    long_px = min(_TILED_LONG_SIDE_PX, max(width, height) * _TILED_SHORT_SIDE_PX / min(width, height))
    return math.ceil(_TILED_SHORT_SIDE_PX / _TILE_PX) * math.ceil(long_px / _TILE_PX)


_UNITS: Final = {ImageKind.AREA: _area, ImageKind.PATCHES: _patches, ImageKind.TILES: _tiles}


def _base64_bytes(image: ImagePart) -> int:
    return math.ceil(len(image.data) / 3) * 4
