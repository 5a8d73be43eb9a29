"""UUIDv7 identities: minting, deriving and checking them.

A request id tells its own age, which is how ids that could no longer be recognised as a repetition are refused without
keeping them. Layout (RFC 9562, section 5.7), most significant bit first:

    48 bits  Unix time in milliseconds
     4 bits  version, 0111
    12 bits  random, or derived
     2 bits  variant, 10
    62 bits  random, or derived

`derived_uuid7` fills the 74 free bits from SHA-256 over its parts, each preceded by its length in 8 bytes, big endian:
the digest's first ten bytes become bytes 6 to 15, then version and variant are set. Another language needs nothing
else.
"""

import hashlib
import os
import re
from datetime import UTC, datetime, timedelta
from typing import Final

from servicekit.errors import FieldViolation, InvalidArgumentError

REQUEST_ID_AGE_MAX: Final = timedelta(days=35)
REQUEST_ID_AHEAD_MAX: Final = timedelta(minutes=5)

_CANONICAL: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_MILLISECOND: Final = timedelta(milliseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FREE_BYTES: Final = 10


def new_uuid7(now: datetime) -> str:
    """Return a new random UUIDv7 that carries `now`."""
    return _format(now, os.urandom(_FREE_BYTES))


def derived_uuid7(at: datetime, *parts: bytes) -> str:
    """Return the one UUIDv7 that `at`, to the millisecond, and `parts` determine."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return _format(at, digest.digest()[:_FREE_BYTES])


def uuid7_time(value: str) -> datetime:
    """Return the time inside a canonical UUIDv7.

    Raises:
        ValueError: `value` is not a canonical, lower-case UUIDv7, or its time is beyond the year 9999.
    """
    if not _CANONICAL.fullmatch(value):
        message = "not a canonical UUIDv7"
        raise ValueError(message)
    try:
        return _EPOCH + int(value[:8] + value[9:13], 16) * _MILLISECOND
    except OverflowError as error:
        message = "the time of the UUIDv7 is no date"
        raise ValueError(message) from error


def check_request_id(value: str, now: datetime, *, field: str = "request_id") -> None:
    """Check that `value` can name a request that is made now.

    Raises:
        InvalidArgumentError: It is not a canonical UUIDv7, or is too old or too far ahead for its repetition to be
        known.
    """
    try:
        at = uuid7_time(value)
    except ValueError:
        raise _refused(
            field, "REQUEST_ID_MALFORMED", "must be a UUIDv7 in canonical lower case; the client library mints one"
        ) from None
    if now - at > REQUEST_ID_AGE_MAX:
        raise _refused(
            field,
            "REQUEST_ID_TOO_OLD",
            f"is older than {REQUEST_ID_AGE_MAX.days} days; mint a new one and name this one in supersedes_request_id",
        )
    if at - now > REQUEST_ID_AHEAD_MAX:
        minutes = REQUEST_ID_AHEAD_MAX // timedelta(minutes=1)
        raise _refused(
            field, "REQUEST_ID_IN_FUTURE", f"is more than {minutes} minutes ahead; set the caller's clock right"
        )


def _refused(field: str, reason: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError(violations=[FieldViolation(field=field, reason=reason, description=description)])


def _format(at: datetime, free: bytes) -> str:
    value = bytearray(((at - _EPOCH) // _MILLISECOND).to_bytes(6, "big") + free)
    value[6] = value[6] & 0x0F | 0x70
    value[8] = value[8] & 0x3F | 0x80
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
