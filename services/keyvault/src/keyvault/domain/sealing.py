"""HPKE: leases to Routers, submitted secrets from owners.

RFC 9180 with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM; a message is the encapsulated key, then the
ciphertext.

`info` is a list of parts, each with its length in four bytes, big endian, before it: no two lists give the same bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from keyvault.domain.errors import SealedSecretInvalidError
from servicekit.errors import FieldViolation, InvalidArgumentError
from servicekit.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyvault.domain.keyring import KeyringKey

PUBLIC_KEY_BYTES: Final = 32
LEASE_LABEL: Final = "byok.lease.v1"
SUBMISSION_LABEL: Final = "byok.submission.v1"
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_LENGTH: Final = struct.Struct(">I")


def info_bytes(parts: Iterable[str]) -> bytes:
    """Return `parts` as the `info` of an HPKE message."""
    encoded = [part.encode() for part in parts]
    return b"".join(_LENGTH.pack(len(part)) + part for part in encoded)


def parse_recipient(public_key: bytes, *, field: str) -> X25519PublicKey:
    """Return the public key of a Router process.

    Raises:
        InvalidArgumentError: it is not 32 bytes, or is a point of small order, which would make the shared key known.
    """
    try:
        recipient = X25519PublicKey.from_public_bytes(public_key)
        # The exchange refuses a point whose shared key is zero whatever the private key is.
        _PROBE.exchange(recipient)
    except ValueError:
        remedy = f"Send the raw X25519 public key of this process, {PUBLIC_KEY_BYTES} bytes."
        raise InvalidArgumentError(
            violations=[FieldViolation(field=field, reason="PUBLIC_KEY_INVALID", description=remedy)]
        ) from None
    return recipient


def seal_leases(plaintext: bytes, *, recipient: X25519PublicKey, deployment: str, holder: str) -> bytes:
    """Return a batch of leases sealed to one Router process: encapsulated key, then ciphertext."""
    return _SUITE.encrypt(plaintext, recipient, info_bytes((LEASE_LABEL, deployment, holder)))


def submission_key_id(key: KeyringKey) -> str:
    """Return the public name of one version of the submission key."""
    return f"submission-{key.version}"


def submission_public_key(key: KeyringKey) -> bytes:
    """Return the raw public key to which owners may seal."""
    return X25519PrivateKey.from_private_bytes(key.key.reveal()).public_key().public_bytes_raw()


def open_submission(ciphertext: bytes, *, key: KeyringKey, bound_to: Iterable[str]) -> Secret:
    """Return the secret that its owner sealed to submission key `key` and bound to the parts `bound_to`.

    Raises:
        SealedSecretInvalidError: it was sealed to another key, or for another owner, provider, base URL or request.
    """
    private_key = X25519PrivateKey.from_private_bytes(key.key.reveal())
    try:
        return Secret(_SUITE.decrypt(ciphertext, private_key, info_bytes((SUBMISSION_LABEL, *bound_to))))
    except (InvalidTag, ValueError):
        message = "the sealed secret does not open for this owner, provider, base URL and request id; seal it again"
        raise SealedSecretInvalidError(message) from None


_PROBE: Final = X25519PrivateKey.generate()
