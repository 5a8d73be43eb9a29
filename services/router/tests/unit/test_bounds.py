"""The most that a call can cost, known before it is made."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalogue.book import load_catalogue
from catalogue.models import Declared, ImageKind, ImageRule
from router.domain.bounds import CallShape, chat_bound, embed_bound, image_tokens_bound, token_bound
from router.domain.completions import ChatCall, ImagePart, Message, OutputSchema, Role, TextPart
from router.domain.embeddings import EmbedCall
from router.domain.routes import Route
from router.providers.registry import Codecs

CATALOGUE = load_catalogue()
CODECS = Codecs()
OVERHEAD = CATALOGUE.overheads("anthropic", "claude-haiku-4-5")
UNKNOWN = CATALOGUE.image_rule("unknown")


def _route(provider: str, model_id: str) -> Route:
    model = CATALOGUE.model(provider, model_id, Declared())
    assert model is not None
    dialect = CATALOGUE.dialect(provider, model)
    return Route(provider=provider, dialect=dialect, base_url="https://provider.test", model=model)


def test_every_feature_adds_to_the_bound_and_candidates_multiply_it() -> None:
    """Bytes, messages, tools, schema, images: each only ever raises it."""
    shapes: list[dict[str, Any]] = [
        {},
        {"messages": 2},
        {"has_tools": True},
        {"has_schema": True},
        {"images_px": ((100, 100),)},
        {"candidates": 2},
    ]
    bounds = [
        token_bound(CallShape(text_bytes=1_000, **shape), OVERHEAD, UNKNOWN, output_tokens_max=50) for shape in shapes
    ]
    assert all(bound.input_tokens > bounds[0].input_tokens for bound in bounds[1:])
    assert bounds[0].input_tokens > 1_000
    assert (bounds[-1].input_tokens, bounds[-1].output_tokens) == (2 * bounds[0].input_tokens, 100)


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        ("anthropic", (1_092, 1_092), 1_590),
        ("anthropic", (8_000, 8_000), 1_640),
        ("openai_tiles", (1_024, 1_024), 85 + 4 * 170),
        ("openai_tiles", (100, 100), 85 + 4 * 170),
        ("openai_tiles", (4_096, 2_048), 85 + 6 * 170),
        ("openai_tiles", (9_000, 100), 85 + 8 * 170),
        ("openai_tiles_mini", (1_024, 1_024), 2_833 + 4 * 5_667),
        ("openai_patches", (1_024, 1_024), 2_520),
        ("openai_patches", (9_000, 9_000), 3_779),
        ("no_such_rule", (1_400, 1_400), 10_000),
        ("unknown", (0, 0), 1),
    ],
)
def test_images_are_bounded_by_their_pixels(name: str, size: tuple[int, int], tokens: int) -> None:
    """By each vendor's way of counting; an unknown one gets the finest."""
    assert image_tokens_bound(CATALOGUE.image_rule(name), *size) == tokens


@given(
    width=st.integers(min_value=1, max_value=20_000),
    height=st.integers(min_value=1, max_value=20_000),
    name=st.sampled_from(["anthropic", "anthropic_large", "openai_tiles", "openai_patches", "openai_large", "unknown"]),
)
def test_a_larger_image_is_never_bounded_lower_by_area(width: int, height: int, name: str) -> None:
    """Growing an image in proportion never lowers its bound."""
    rule = CATALOGUE.image_rule(name)
    assert image_tokens_bound(rule, 2 * width, 2 * height) >= image_tokens_bound(rule, width, height) > 0


def test_a_fraction_of_a_token_is_rounded_up() -> None:
    """Three units of half a token are two tokens."""
    rule = ImageRule(kind=ImageKind.AREA, each=0.5, unit_px=1)
    assert image_tokens_bound(rule, 3, 1) == 2


@given(text=st.text(max_size=2_000))
def test_a_chats_bound_is_above_the_bytes_of_its_text(text: str) -> None:
    """A token is at least one byte of the request, whatever the text."""
    route = _route("anthropic", "claude-haiku-4-5")
    text = text.encode("utf-8", "replace").decode()
    message = Message(role=Role.USER, parts=(TextPart(text=text),))
    call = ChatCall(messages=(message,), output_tokens_max=77)
    body = CODECS.chat(route).build_chat(call, route).body
    bound = chat_bound(call, len(body), route, CATALOGUE)
    assert bound.input_tokens > len(text.encode())
    assert bound.output_tokens == 77


def test_an_images_bytes_are_replaced_by_its_pixels() -> None:
    """A large file of few pixels is not charged by its size, nor a small file of many by its."""
    route = _route("openai", "gpt-4o")
    heavy = ImagePart(media_type="image/png", data=b"x" * 300_000, width_px=64, height_px=64)
    message = Message(role=Role.USER, parts=(TextPart(text="Look"), heavy))
    schema = OutputSchema(name="s", schema={"type": "object"})
    call = ChatCall(messages=(message,), output_tokens_max=10, schema=schema)
    body = CODECS.chat(route).build_chat(call, route).body
    assert 1_000 < chat_bound(call, len(body), route, CATALOGUE).input_tokens < 3_000


def test_an_embeddings_bound_has_no_output() -> None:
    """Only its input costs."""
    route = _route("openai", "text-embedding-3-small")
    call = EmbedCall(texts=("one", "two"), dimensions=1_024)
    body = CODECS.embedding(route).build_embed(call, route).body
    bound = embed_bound(call, len(body), route, CATALOGUE)
    assert bound.output_tokens == 0
    assert bound.input_tokens > len(body)
