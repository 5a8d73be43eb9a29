"""The one way in which this service turns fields into bytes that are authenticated or hashed.

Associated data of envelopes, authority HMACs and audit leaves all use it. It must not know what the fields mean.

::

    u16 length of label | label | u16 number of fields | for each field: u32 length | bytes

Text is UTF-8, an integer is eight bytes big endian, absent text is the empty string. Because every part carries its
length, no two different lists of fields give the same bytes; joined strings and JSON do not have that property.
"""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

Field = str | bytes | int

FIELD_BYTES_MAX: Final = 1 << 20
"""No field of an authenticated record may be longer; a longer one is a bug or an attack."""

_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_I64: Final = struct.Struct(">q")


class CanonicalFormError(ValueError):
    """Bytes that are not the canonical form of any list of fields."""


def encode_fields(label: str, fields: Sequence[Field]) -> bytes:
    """Return the canonical bytes of `fields` under `label`."""
    parts = [_head(label), _U16.pack(len(fields))]
    for field in fields:
        if isinstance(field, str):
            encoded = field.encode()
        elif isinstance(field, bytes):
            encoded = field
        else:
            encoded = _I64.pack(field)
        if len(encoded) > FIELD_BYTES_MAX:
            raise CanonicalFormError("a field is too long to be authenticated")
        parts.append(_U32.pack(len(encoded)))
        parts.append(encoded)
    return b"".join(parts)


def decode_fields(label: str, encoded: bytes) -> list[bytes]:
    """Return the fields that `encode_fields` put under `label`.

    Raises:
        CanonicalFormError: another label, a cut or an over-long encoding.
    """
    head = _head(label)
    if not encoded.startswith(head):
        message = "the record carries another label"
        raise CanonicalFormError(message)
    try:
        fields, end = _read_fields(encoded, len(head))
    except struct.error as error:
        message = "the record is cut"
        raise CanonicalFormError(message) from error
    if end != len(encoded):
        message = "the record has bytes after its last field"
        raise CanonicalFormError(message)
    return fields


class FieldReader:
    """The fields of one record, read in order, each as what it was written as."""

    def __init__(self, label: str, encoded: bytes) -> None:
        """Decode `encoded`. Raises CanonicalFormError like `decode_fields`."""
        self._fields = iter(decode_fields(label, encoded))

    def raw(self) -> bytes:
        """Return the next field as bytes. Raises CanonicalFormError when there is none."""
        field = next(self._fields, None)
        if field is None:
            message = "the record has too few fields"
            raise CanonicalFormError(message)
        return field

    def text(self) -> str:
        """Return the next field as text. Raises CanonicalFormError when there is none, or it is not UTF-8."""
        try:
            return self.raw().decode()
        except UnicodeDecodeError as error:
            message = "a text field is not UTF-8"
            raise CanonicalFormError(message) from error

    def number(self) -> int:
        """Return the next field as an integer. Raises CanonicalFormError when there is none, or it is not one."""
        return field_int(self.raw())

    def flag(self) -> bool:
        """Return the next field as a truth value. Raises CanonicalFormError when there is none, or it is not 0 or 1."""
        number = self.number()
        if number not in (0, 1):
            message = "a flag is 0 or 1"
            raise CanonicalFormError(message)
        return bool(number)

    def rest(self) -> list[bytes]:
        """Return all fields that are left."""
        return list(self._fields)

    def end(self) -> None:
        """Raise CanonicalFormError when fields are left."""
        if self.rest():
            message = "the record has too many fields"
            raise CanonicalFormError(message)


def field_int(field: bytes) -> int:
    """Return the integer that was encoded as this field.

    Raises:
        CanonicalFormError: the field is not eight bytes.
    """
    if len(field) != _I64.size:
        message = "an integer field must have eight bytes"
        raise CanonicalFormError(message)
    return int(_I64.unpack(field)[0])


@functools.cache
def _head(label: str) -> bytes:
    name = label.encode("ascii")
    return _U16.pack(len(name)) + name


def _read_fields(encoded: bytes, start: int) -> tuple[list[bytes], int]:
    (count,) = _U16.unpack_from(encoded, start)
    position = start + _U16.size
    fields = []
    for _ in range(count):
        (length,) = _U32.unpack_from(encoded, position)
        position += _U32.size
        field = encoded[position : position + length]
        if len(field) != length:
            message = "the record is cut"
            raise CanonicalFormError(message)
        fields.append(field)
        position += length
    return fields, position
