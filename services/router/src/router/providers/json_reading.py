"""Reads vendors' JSON without believing it: what is missing or of another type is empty, never a crash.

Vendors add fields, send ``null`` for lists and numbers as strings. Only text that is no JSON object at all is an error.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeAlias, cast

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

Json: TypeAlias = "dict[str, object]"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COUNT_MAX = 2**53
"""Above it a JSON number is no exact count any more."""


class UnreadableError(ValueError):
    """The bytes are no JSON object. Never carries them: they may hold a prompt or a key."""


def read_value(data: bytes) -> object:
    """Return the JSON value of a body.

    Raises:
        UnreadableError: It is no JSON.
    """
    try:
        return cast("object", orjson.loads(data.removeprefix(_BYTE_ORDER_MARK)))
    except orjson.JSONDecodeError:
        pass
    # The slow parser takes what the fast one refuses and vendors do send: lone surrogates, NaN, raw control characters.
    try:
        return cast("object", json.loads(data.decode("utf-8-sig"), strict=False))
    except (ValueError, RecursionError):
        message = "the body is no JSON"
    raise UnreadableError(message)


def read_object(data: bytes) -> Json:
    """Return the JSON object of a body.

    Raises:
        UnreadableError: It is no JSON object.
    """
    value = read_value(data)
    if not isinstance(value, dict):
        message = "the body is no JSON object"
        raise UnreadableError(message)
    return value


def text_of(source: Mapping[str, object], key: str) -> str:
    """Return a string, or the empty one."""
    value = source.get(key)
    return value if isinstance(value, str) else ""


def optional_text_of(source: Mapping[str, object], key: str) -> str | None:
    """Return a string, or ``None`` where there is none."""
    value = source.get(key)
    return value if isinstance(value, str) else None


def count_of(source: Mapping[str, object], key: str) -> int:
    """Return a whole number, or zero."""
    value = source.get(key)
    if value.__class__ is int and 0 <= value <= _COUNT_MAX:
        return value
    return optional_count_of(source, key) or 0


def optional_count_of(source: Mapping[str, object], key: str) -> int | None:
    """Return a whole number, or ``None``; floats and strings of digits count, as some vendors send them."""
    value = source.get(key)
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:17])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and abs(value) <= _COUNT_MAX else None


def number_of(source: Mapping[str, object], key: str) -> float | None:
    """Return a number, or ``None``."""
    value = source.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def object_of(source: Mapping[str, object], key: str) -> Json:
    """Return an object, or the empty one."""
    value = source.get(key)
    return value if isinstance(value, dict) else {}


def objects_of(source: Mapping[str, object], key: str) -> list[Json]:
    """Return the objects of a list; what is no object in it is passed over."""
    value = source.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def whole_text(text: str) -> str:
    """Return text that UTF-8 can carry: halves of a pair that met are joined, a half that is alone is replaced."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def write(value: object) -> bytes:
    """Return compact JSON."""
    return orjson.dumps(value)


def rewritten(value: object) -> bytes:
    """Return a vendor's own value as JSON again; what JSON cannot carry (half a surrogate pair) is replaced."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_clean(value))


def _clean(value: object) -> object:
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {whole_text(str(key)): _clean(item) for key, item in value.items()}
    return float(value) if isinstance(value, int) and abs(value) > _COUNT_MAX else value
