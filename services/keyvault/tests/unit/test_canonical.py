"""The canonical form: what goes in comes out, and no two lists give the same bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvault.domain.canonical import (
    FIELD_BYTES_MAX,
    CanonicalFormError,
    FieldReader,
    decode_fields,
    encode_fields,
)

FIELDS = st.lists(st.binary(max_size=40), max_size=6)


@given(FIELDS)
def test_fields_come_back(fields: list[bytes]) -> None:
    """Decoding is the inverse of encoding."""
    assert decode_fields("label", encode_fields("label", fields)) == fields


@given(FIELDS, FIELDS)
def test_different_fields_give_different_bytes(first: list[bytes], second: list[bytes]) -> None:
    """No boundary can be moved."""
    assert (encode_fields("label", first) == encode_fields("label", second)) == (first == second)


@given(FIELDS, st.data())
def test_every_cut_is_refused(fields: list[bytes], data: st.DataObject) -> None:
    """A prefix of a record is no record."""
    encoded = encode_fields("label", fields)
    length = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(CanonicalFormError):
        decode_fields("label", encoded[:length])


def test_the_label_is_part_of_the_record() -> None:
    """A record of one kind is not read as another's."""
    with pytest.raises(CanonicalFormError):
        decode_fields("other", encode_fields("label", [b"x"]))


def test_bytes_after_the_last_field_are_refused() -> None:
    """A record ends where it says."""
    with pytest.raises(CanonicalFormError):
        decode_fields("label", encode_fields("label", [b"x"]) + b"\0")


def test_an_overlong_field_is_refused() -> None:
    """Nothing longer than the bound is ever authenticated."""
    with pytest.raises(CanonicalFormError):
        encode_fields("label", [bytes(FIELD_BYTES_MAX + 1)])


def test_a_reader_gives_fields_as_they_were_written() -> None:
    """Text, numbers and bytes come back as such, and nothing may be left or missing."""
    read = FieldReader("label", encode_fields("label", ["é", -7, b"\0"]))
    assert (read.text(), read.number(), read.raw()) == ("é", -7, b"\0")
    read.end()
    with pytest.raises(CanonicalFormError):
        read.raw()


@pytest.mark.parametrize("read", ["text", "number"])
def test_a_reader_refuses_what_was_not_written_so(read: str) -> None:
    """Bytes that are neither UTF-8 nor eight long are neither text nor a number."""
    with pytest.raises(CanonicalFormError):
        getattr(FieldReader("label", encode_fields("label", [b"\xff"])), read)()


def test_a_reader_refuses_fields_that_are_left() -> None:
    """A record with more fields than its reader knows is of another release."""
    with pytest.raises(CanonicalFormError):
        FieldReader("label", encode_fields("label", ["x"])).end()
