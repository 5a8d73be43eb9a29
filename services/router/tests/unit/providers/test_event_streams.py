"""Cutting streams into events: the WHATWG rules, and what vendors do beside them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.providers import event_streams
from router.providers.event_streams import EventCutter, EventTooLargeError, LineCutter, ServerSentEvent

TRICKY = (
    '\ufeff: a comment\r\n\r\ndata: one\r\n\r\nevent: named\rid: 7\rretry: 10\rdata: {"é": "🎨"}\r\r'
    'data: two\ndata:\ndata: lines\n\nevent: lonely\n\ndata\n\n{"error": "bare"}\n\ndata: last'
).encode()


def _cut(pieces: list[bytes]) -> list[ServerSentEvent]:
    cutter = EventCutter()
    events = [event for piece in pieces for event in cutter.feed(piece)]
    return events + cutter.finish()


def test_line_ends_comments_names_and_several_data_lines() -> None:
    """All three line ends work, comments vanish, data lines join, and the last event needs no blank line."""
    assert _cut([TRICKY]) == [
        ServerSentEvent("", b"one"),
        ServerSentEvent("named", '{"é": "🎨"}'.encode()),
        ServerSentEvent("", b"two\n\nlines"),
        ServerSentEvent("", b""),
        ServerSentEvent("", b'{"error": "bare"}'),
        ServerSentEvent("", b"last"),
    ]


@given(cuts=st.lists(st.integers(min_value=0, max_value=len(TRICKY)), max_size=40))
def test_how_the_bytes_are_cut_makes_no_difference(cuts: list[int]) -> None:
    """Any cutting of the bytes gives the events of the whole."""
    edges = [0, *sorted(cuts), len(TRICKY)]
    pieces = [TRICKY[start:end] for start, end in itertools.pairwise(edges)]
    assert _cut(pieces) == _cut([TRICKY])


def test_byte_by_byte_is_the_whole() -> None:
    """The finest cutting gives the events of the whole."""
    assert _cut([bytes([byte]) for byte in TRICKY]) == _cut([TRICKY])


@given(st.binary(max_size=300), st.integers(min_value=1, max_value=9))
def test_no_bytes_at_all_make_it_crash(data: bytes, size: int) -> None:
    """Whatever comes, events come or nothing does."""
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert _cut(pieces) == _cut([data])


def test_a_line_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream cannot make us hold more than the bound."""
    monkeypatch.setattr(event_streams, "EVENT_BYTES_MAX", 100)
    with pytest.raises(EventTooLargeError):
        EventCutter().feed(b"data: " + b"x" * 200)
    with pytest.raises(EventTooLargeError):
        EventCutter().feed(b"data: xxxxxxxxxx\n" * 20)


def test_json_lines_keep_carriage_returns_out() -> None:
    """Lines of JSON may end in CRLF; a bare CR is no end there."""
    cutter = LineCutter(bare_cr=False)
    assert cutter.cut(b'{"a":1}\r\n{"b":"x\ry"}\n{') == [b'{"a":1}', b'{"b":"x\ry"}']
    assert cutter.remainder() == b"{"
