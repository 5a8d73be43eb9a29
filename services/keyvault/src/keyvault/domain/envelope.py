"""Envelope format v1: how one version of a provider key is sealed under a DEK, and that DEK wrapped under a KEK.

It answers for confidentiality and binding of stored secrets. It must not know where envelopes are stored.

Sealed secret (layer 1)::

    offset  bytes
    0       4      "BYOK"
    4       1      format version, 1
    5       1      layer, 1
    6       2      n, the length of the ciphertext without its tag, big endian, 1 to 8192
    8       32     salt
    40      32     key commitment
    72      12     nonce
    84      n      ciphertext
    84 + n  16     GCM tag

Wrapped DEK (layer 2), always 134 bytes::

    0       4      "BYOK"
    4       1      format version, 1
    5       1      layer, 2
    6       4      KEK version, big endian
    10      32     salt
    42      32     key commitment
    74      12     nonce
    86      32     ciphertext
    118     16     GCM tag

In both layers HKDF-SHA-512 of the key (DEK, KEK) with the salt and the layer's label gives 64 bytes: the first 32 are
the AES-256-GCM key, the last 32 the key commitment, which is compared in constant time before anything is decrypted.
GCM alone does not commit to its key: two keys can open one ciphertext to two secrets. A key is derived for every seal
and every wrap, so the bound on random nonces under one key never comes near. The associated data of a layer is its
header and the canonical form of the context, so that neither layer opens for another key, version, owner, provider or
base URL.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyvault.domain.canonical import encode_fields
from keyvault.domain.errors import EnvelopeCorruptError
from keyvault.domain.ownership import Holder
from servicekit.secrets import Secret

SECRET_BYTES_MAX: Final = 8192
KEY_BYTES: Final = 32

_MAGIC: Final = b"BYOK"
_FORMAT: Final = 1
_SECRET_HEADER: Final = struct.Struct(">4sBBH")
_WRAP_HEADER: Final = struct.Struct(">4sBBI")
_SECRET_LAYER: Final = 1
_WRAP_LAYER: Final = 2
_SALT_BYTES: Final = 32
_COMMITMENT_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_OVERHEAD_BYTES: Final = _SALT_BYTES + _COMMITMENT_BYTES + _NONCE_BYTES + _TAG_BYTES
_SECRET_LABEL: Final = b"byok/envelope/v1/secret"
_WRAP_LABEL: Final = b"byok/envelope/v1/dek"
_CONTEXT_LABEL: Final = "byok/envelope/v1/context"

WRAPPED_DEK_BYTES: Final = _WRAP_HEADER.size + _OVERHEAD_BYTES + KEY_BYTES


@dataclass(frozen=True, slots=True)
class EnvelopeContext:
    """Everything that an envelope is bound to."""

    deployment: str
    provider_key_id: str
    key_version: int
    holder: Holder
    provider: str
    base_url: str

    def canonical(self) -> bytes:
        """Return the bytes that both layers authenticate."""
        return encode_fields(
            _CONTEXT_LABEL,
            (
                self.deployment,
                self.provider_key_id,
                self.key_version,
                int(self.holder.scope),
                int(self.holder.owned_by.kind),
                self.holder.owned_by.party_id,
                self.holder.agent_id,
                self.provider,
                self.base_url,
            ),
        )


@dataclass(frozen=True, slots=True)
class Kek:
    """One version of the key that wraps DEKs."""

    version: int
    key: Secret


@dataclass(frozen=True, slots=True)
class Envelope:
    """A sealed secret beside its wrapped DEK. Neither part opens without the other, nor under another context."""

    sealed_secret: bytes
    wrapped_dek: bytes

    @property
    def kek_version(self) -> int:
        """Return the KEK version that the wrapped DEK names."""
        return wrapped_kek_version(self.wrapped_dek)


def seal(secret: Secret, *, context: EnvelopeContext, kek: Kek) -> Envelope:
    """Seal `secret` under a fresh DEK and wrap that DEK under `kek`.

    Raises:
        ValueError: the secret is empty or longer than `SECRET_BYTES_MAX`; callers check that first, with a typed error.
    """
    plaintext = secret.reveal()
    if not 1 <= len(plaintext) <= SECRET_BYTES_MAX:
        message = "a secret must have 1 to 8192 bytes"
        raise ValueError(message)
    dek = Secret(os.urandom(KEY_BYTES))
    header = _SECRET_HEADER.pack(_MAGIC, _FORMAT, _SECRET_LAYER, len(plaintext))
    associated_data = context.canonical()
    sealed = _encrypt(dek, plaintext, header=header, label=_SECRET_LABEL, associated_data=associated_data)
    return Envelope(sealed_secret=sealed, wrapped_dek=wrap_dek(dek, associated_data=associated_data, kek=kek))


def open_envelope(envelope: Envelope, *, context: EnvelopeContext, kek: Kek) -> Secret:
    """Return the secret in `envelope`.

    Raises:
        EnvelopeCorruptError: a byte differs from what was sealed, or the context is not the one that was bound.
    """
    associated_data = context.canonical()
    try:
        dek = unwrap_dek(envelope.wrapped_dek, associated_data=associated_data, kek=kek)
        return _open_secret(dek, envelope.sealed_secret, associated_data)
    except EnvelopeCorruptError:
        message = "the stored secret fails authentication; restore it from a backup or replace the secret"
        facts: dict[str, str | int] = {"provider_key_id": context.provider_key_id, "key_version": context.key_version}
        # The cause is left out on purpose: which check failed is of use to an attacker only.
        raise EnvelopeCorruptError(message, **facts) from None


def wrap_dek(dek: Secret, *, associated_data: bytes, kek: Kek) -> bytes:
    """Return `dek` wrapped under `kek`, bound to `associated_data`."""
    header = _WRAP_HEADER.pack(_MAGIC, _FORMAT, _WRAP_LAYER, kek.version)
    return _encrypt(kek.key, dek.reveal(), header=header, label=_WRAP_LABEL, associated_data=associated_data)


def unwrap_dek(wrapped: bytes, *, associated_data: bytes, kek: Kek) -> Secret:
    """Return the DEK in `wrapped`.

    Raises:
        EnvelopeCorruptError: it was wrapped under another KEK version or context, or was changed since.
    """
    if wrapped_kek_version(wrapped) != kek.version:
        raise _corrupt()
    header = wrapped[: _WRAP_HEADER.size]
    return Secret(_decrypt(kek.key, wrapped, header=header, label=_WRAP_LABEL, associated_data=associated_data))


def wrapped_kek_version(wrapped: bytes) -> int:
    """Return the KEK version that a wrapped DEK names in its header.

    Raises:
        EnvelopeCorruptError: these are not the bytes of a wrapped DEK.
    """
    if len(wrapped) != WRAPPED_DEK_BYTES:
        raise _corrupt()
    magic, version, layer, kek_version = _WRAP_HEADER.unpack_from(wrapped)
    if (magic, version, layer) != (_MAGIC, _FORMAT, _WRAP_LAYER):
        raise _corrupt()
    return int(kek_version)


def _open_secret(dek: Secret, sealed: bytes, associated_data: bytes) -> Secret:
    if len(sealed) < _SECRET_HEADER.size:
        raise _corrupt()
    magic, version, layer, length = _SECRET_HEADER.unpack_from(sealed)
    if (magic, version, layer) != (_MAGIC, _FORMAT, _SECRET_LAYER):
        raise _corrupt()
    if len(sealed) != _SECRET_HEADER.size + _OVERHEAD_BYTES + length:
        raise _corrupt()
    header = sealed[: _SECRET_HEADER.size]
    return Secret(_decrypt(dek, sealed, header=header, label=_SECRET_LABEL, associated_data=associated_data))


def _derive(key: Secret, salt: bytes, label: bytes) -> tuple[bytes, bytes]:
    okm = HKDF(algorithm=SHA512(), length=KEY_BYTES + _COMMITMENT_BYTES, salt=salt, info=label).derive(key.reveal())
    return okm[:KEY_BYTES], okm[KEY_BYTES:]


def _encrypt(key: Secret, plaintext: bytes, *, header: bytes, label: bytes, associated_data: bytes) -> bytes:
    salt = os.urandom(_SALT_BYTES)
    nonce = os.urandom(_NONCE_BYTES)
    encryption_key, commitment = _derive(key, salt, label)
    sealed = AESGCM(encryption_key).encrypt(nonce, plaintext, header + associated_data)
    return b"".join((header, salt, commitment, nonce, sealed))


def _decrypt(key: Secret, sealed: bytes, *, header: bytes, label: bytes, associated_data: bytes) -> bytes:
    salt_end = len(header) + _SALT_BYTES
    commitment_end = salt_end + _COMMITMENT_BYTES
    nonce_end = commitment_end + _NONCE_BYTES
    encryption_key, commitment = _derive(key, sealed[len(header) : salt_end], label)
    if not bytes_eq(commitment, sealed[salt_end:commitment_end]):
        raise _corrupt()
    nonce, ciphertext = sealed[commitment_end:nonce_end], sealed[nonce_end:]
    try:
        return AESGCM(encryption_key).decrypt(nonce, ciphertext, header + associated_data)
    except InvalidTag:
        raise _corrupt() from None


def _corrupt() -> EnvelopeCorruptError:
    message = "these bytes are not what was sealed"
    return EnvelopeCorruptError(message)
