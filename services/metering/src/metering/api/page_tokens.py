"""Page tokens: opaque to callers, and bound to the filter that they were made under."""

import base64
import hashlib

from metering.api.fields import invalid
from servicekit.errors import InvalidArgumentError

_DIGEST_BYTES = 8
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1_000


def page_size(asked: int) -> int:
    """Return how many items a page has."""
    if asked < 0 or asked > PAGE_SIZE_MAX:
        raise invalid("page_size", "OUT_OF_RANGE", f"must be from 0 to {PAGE_SIZE_MAX}")
    return asked or PAGE_SIZE_DEFAULT


def invalid_page_token() -> InvalidArgumentError:
    """Return the complaint about a token that is not ours, or of another filter."""
    return invalid("page_token", "PAGE_TOKEN_INVALID", "must be next_page_token of the page before, same filter")


def page_token(position: str, *bound_to: str) -> str:
    """Return the token of the page after a position."""
    return base64.urlsafe_b64encode(_digest(bound_to) + position.encode()).decode()


def position_of(token: str, *bound_to: str) -> str:
    """Return the position in a token; empty for the first page.

    Raises:
        InvalidArgumentError: It is not ours, or was made under another filter.
    """
    if not token:
        return ""
    try:
        raw = base64.urlsafe_b64decode(token)
        digest, position = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:].decode()
    except ValueError:
        digest, position = b"", ""
    # The digest binds the filter; the position is the caller's to forge, and must not be more than a position.
    if digest != _digest(bound_to) or not position.isprintable():
        raise invalid_page_token()
    return position


def _digest(bound_to: tuple[str, ...]) -> bytes:
    digest = hashlib.sha256()
    for part in bound_to:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.digest()[:_DIGEST_BYTES]
