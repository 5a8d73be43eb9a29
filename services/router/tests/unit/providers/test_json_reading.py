"""Reading vendors' JSON without believing it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.providers.json_reading import (
    UnreadableError,
    count_of,
    object_of,
    objects_of,
    optional_count_of,
    read_object,
    rewritten,
    text_of,
    whole_text,
)


@pytest.mark.parametrize(
    ("value", "count"),
    [(7, 7), (7.0, 7), ("7", 7), (None, None), (True, None), (1.5, None), ("x", None), (2**60, None), ([], None)],
)
def test_counts_are_whole_numbers_or_nothing(value: object, count: int | None) -> None:
    """A count may come as float or digits; nothing else is one."""
    assert optional_count_of({"n": value}, "n") == count
    assert count_of({"n": value}, "n") == (count or 0)


def test_missing_and_mistyped_fields_are_empty() -> None:
    """A field of another type reads as if it were missing."""
    odd = {"t": 1, "o": [], "l": {"a": 1}, "m": [1, {"x": 2}, None]}
    assert text_of(odd, "t") == ""
    assert object_of(odd, "o") == {}
    assert objects_of(odd, "l") == []
    assert objects_of(odd, "m") == [{"x": 2}]


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"<html>", b"\xff\xfe", b'{"a":', b"null", b"[" * 100_000])
def test_what_is_no_object_is_unreadable_and_not_repeated(body: bytes) -> None:
    """The error never carries the bytes."""
    with pytest.raises(UnreadableError) as caught:
        read_object(body)
    assert caught.value.__cause__ is None
    assert "html" not in str(caught.value)


def test_what_vendors_send_beyond_strict_json_is_read() -> None:
    """A byte-order mark, a lone half of a pair, NaN, a raw control character."""
    assert read_object(b"\xef\xbb\xbf" + b'{"a": 1}') == {"a": 1}
    assert whole_text(text_of(read_object(b'{"a": "x\\ud83d"}'), "a")) == "x\ufffd"
    assert read_object(b'{"a": NaN, "b": "\x01"}')["b"] == "\x01"


def test_halves_that_meet_are_joined() -> None:
    """A pair that a stream cut in two is one character again."""
    assert whole_text("\ud83c" + "\udfa8") == "🎨"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_anything_json_can_be_written_again(value: object) -> None:
    """Replayed state never fails to be written."""
    assert rewritten({"value": value})


def test_lone_surrogates_do_not_stop_a_replay() -> None:
    """What UTF-8 cannot carry is replaced."""
    assert rewritten({"a": ["\ud83d"], "n": 2**70}).startswith(b'{"a":["')
