"""Envelope v1 written a second time, from docs/envelope.md alone, with nothing of the service but AES-GCM's library."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


@dataclass(frozen=True)
class Randomness:
    """What sealing draws for one layer."""

    salt: bytes
    nonce: bytes


def hkdf_sha512(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """Return RFC 5869's output."""
    pseudorandom = hmac.new(salt, key, hashlib.sha512).digest()
    output, block, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.new(pseudorandom, block + info + bytes([counter]), hashlib.sha512).digest()
        output += block
        counter += 1
    return output[:length]


def associated_data(fields: list[str | int]) -> bytes:
    """Return the canonical context."""
    label = b"byok/envelope/v1/context"
    out = struct.pack(">H", len(label)) + label + struct.pack(">H", len(fields))
    for field in fields:
        encoded = struct.pack(">q", field) if isinstance(field, int) else field.encode()
        out += struct.pack(">I", len(encoded)) + encoded
    return out


def layer(key: bytes, plaintext: bytes, header: bytes, label: bytes, context: bytes, drawn: Randomness) -> bytes:
    """Return one layer."""
    okm = hkdf_sha512(key, drawn.salt, label, 64)
    sealed = AESGCM(okm[:32]).encrypt(drawn.nonce, plaintext, header + context)
    return header + drawn.salt + okm[32:] + drawn.nonce + sealed


def sealed_secret(secret: bytes, dek: bytes, context: bytes, drawn: Randomness) -> bytes:
    """Return layer 1."""
    header = b"BYOK\x01\x01" + struct.pack(">H", len(secret))
    return layer(dek, secret, header, b"byok/envelope/v1/secret", context, drawn)


def wrapped_dek(dek: bytes, kek: bytes, kek_version: int, context: bytes, drawn: Randomness) -> bytes:
    """Return layer 2."""
    header = b"BYOK\x01\x02" + struct.pack(">I", kek_version)
    return layer(kek, dek, header, b"byok/envelope/v1/dek", context, drawn)
