"""Pages of a listing: their size, and tokens that fit the filter that they were made for and no other."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Final

from keyvault.domain.canonical import Field, encode_fields
from keyvault.domain.new_keys import refused

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE_SIZE_DEFAULT: Final = 50
PAGE_SIZE_MAX: Final = 1000
_FILTER_LABEL: Final = "byok/keyvault/v1/list-filter"
_FILTER_HASH_BYTES: Final = 12


def page_size(asked: int) -> int:
    """Return the size of a page. Raises InvalidArgumentError when it is out of range."""
    if asked < 0 or asked > PAGE_SIZE_MAX:
        raise refused(
            "page_size",
            "PAGE_SIZE_OUT_OF_RANGE",
            f"Send 1 to {PAGE_SIZE_MAX}, or leave it out for {PAGE_SIZE_DEFAULT}.",
        )
    return asked or PAGE_SIZE_DEFAULT


def write_token(last_id: str, filter_fields: Sequence[Field]) -> str:
    """Return the token of the page after `last_id`."""
    return base64.urlsafe_b64encode(_filter_hash(filter_fields) + last_id.encode()).decode()


def read_token(token: str, filter_fields: Sequence[Field]) -> str:
    """Return the last id of the page before; nothing for the first page.

    Raises:
        InvalidArgumentError: the token is not one of this listing.
    """
    if not token:
        return ""
    try:
        decoded = base64.urlsafe_b64decode(token)
        if decoded[:_FILTER_HASH_BYTES] == _filter_hash(filter_fields):
            return decoded[_FILTER_HASH_BYTES:].decode("ascii")
    except (binascii.Error, ValueError):
        pass
    raise refused(
        "page_token", "PAGE_TOKEN_INVALID", "Send the token of the page before, with the same filter; or start again."
    )


def _filter_hash(filter_fields: Sequence[Field]) -> bytes:
    return hashlib.sha256(encode_fields(_FILTER_LABEL, filter_fields)).digest()[:_FILTER_HASH_BYTES]
