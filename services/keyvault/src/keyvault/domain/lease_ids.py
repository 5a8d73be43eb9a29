"""Lease ids that only this service can make: a report on a lease is taken only from the process that was granted it.

There is no table of leases, so an id proves itself: a UUIDv7 (RFC 9562, section 5.7), most significant bit first::

    48 bits  Unix time in milliseconds
     4 bits  version, 0111
    12 bits  random
     2 bits  variant, 10
    62 bits  the first bits of HMAC-SHA-256 under the authority key over label, time, random bits, holder, provider key
             and its version

With 62 bits, a guess succeeds once in 4.6e18 calls, and nobody but this service can test one. The key's version is not
in the id: every version that may verify is tried, newest first, of which there are few.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING, Final

from keyvault.domain.canonical import encode_fields
from keyvault.domain.errors import LeaseUnknownError
from keyvault.domain.keyring import KeyPurpose
from servicekit.ids import uuid7_time

if TYPE_CHECKING:
    from datetime import datetime

    from keyvault.domain.keyring import Keyring

_LABEL: Final = "byok/keyvault/v1/lease-id"
_HEX_BEFORE_MAC: Final = 16
"""Hex digits of time, version and random bits."""
_MAC_BYTES: Final = 8
_VERSION: Final = 0x7000
_RANDOM_MASK: Final = 0x0FFF
_VARIANT: Final = 0x80
_VARIANT_MASK: Final = 0x3F
_EPOCH_MILLISECONDS: Final = 1000


def new_lease_id(ring: Keyring, *, holder: str, provider_key_id: str, key_version: int, now: datetime) -> str:
    """Return the id of a lease that `holder` is granted on this version of a key."""
    milliseconds = int(now.timestamp() * _EPOCH_MILLISECONDS)
    drawn = int.from_bytes(os.urandom(2), "big") & _RANDOM_MASK
    head = f"{milliseconds:012x}{_VERSION | drawn:04x}"
    version = ring.primary(KeyPurpose.AUTHORITY_MAC).version
    granted_to = (holder, provider_key_id, key_version)
    return _format(head + _tail(ring, version, head, granted_to))


def ensure_granted(ring: Keyring, lease_id: str, *, holder: str, provider_key_id: str, key_version: int) -> None:
    """Raise LeaseUnknownError unless `holder` was granted this lease on this version of the key."""
    try:
        uuid7_time(lease_id)
    except (ValueError, OverflowError):
        raise _unknown(lease_id) from None
    digits = lease_id.replace("-", "")
    head, tail = digits[:_HEX_BEFORE_MAC], digits[_HEX_BEFORE_MAC:]
    granted_to = (holder, provider_key_id, key_version)
    versions = ring.usable_versions(KeyPurpose.AUTHORITY_MAC)
    if not any(hmac.compare_digest(_tail(ring, version, head, granted_to), tail) for version in versions):
        raise _unknown(lease_id)


def _tail(ring: Keyring, version: int, head: str, granted_to: tuple[str, str, int]) -> str:
    context = ring.mac(KeyPurpose.AUTHORITY_MAC, version)
    context.update(encode_fields(_LABEL, (head, *granted_to)))
    mac = bytearray(context.digest()[:_MAC_BYTES])
    mac[0] = mac[0] & _VARIANT_MASK | _VARIANT
    return mac.hex()


def _format(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _unknown(lease_id: str) -> LeaseUnknownError:
    # Sent back as it came, but never longer than an id: it is in an answer and may be in a log.
    message = "this process was granted no such lease on this version of the key; report what it was granted itself"
    return LeaseUnknownError(message, lease_id=lease_id[:36])
