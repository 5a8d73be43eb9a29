"""The keys of a transit engine, as Vault's `keysutil` treats them: versions, associated data, lenient reading."""

import base64
import binascii
import os
import re
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12


class TransitError(Exception):
    """What the engine answers with 400, in its own words."""


@dataclass
class TransitKey:
    """One named AES-256-GCM key and its versions, counted from 1."""

    versions: list[bytes] = field(default_factory=lambda: [os.urandom(32)])
    min_decryption_version: int = 1
    deletion_allowed: bool = False

    def rotate(self) -> None:
        """Add a version, which encrypts from now on."""
        self.versions.append(os.urandom(32))

    def encrypt(self, body: dict[str, Any], *, binds: bool) -> str:
        """Return the ciphertext of the body's plaintext."""
        if "plaintext" not in body:
            raise TransitError("missing plaintext to encrypt")
        nonce = os.urandom(_NONCE_BYTES)
        aead = AESGCM(self.versions[-1])
        sealed = aead.encrypt(nonce, _decode(body["plaintext"]), _associated_data(body, binds=binds))
        return f"vault:v{len(self.versions)}:{base64.b64encode(nonce + sealed).decode()}"

    def decrypt(self, body: dict[str, Any], *, binds: bool) -> str:
        """Return the plaintext of the body's ciphertext, in base64."""
        ciphertext = body.get("ciphertext", "")
        if not ciphertext:
            raise TransitError("missing ciphertext to decrypt")
        version, encoded = self._parsed(ciphertext)
        try:
            # Go's decoder passes over line ends.
            raw = base64.b64decode(re.sub(r"[\r\n]", "", encoded), validate=True)
        except (binascii.Error, ValueError):
            raise TransitError("invalid ciphertext: could not decode base64") from None
        if len(raw) < _NONCE_BYTES:
            raise TransitError("invalid ciphertext length")
        aead = AESGCM(self.versions[version - 1])
        try:
            plain = aead.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _associated_data(body, binds=binds))
        except InvalidTag:
            raise TransitError("cipher: message authentication failed") from None
        return base64.b64encode(plain).decode()

    def _parsed(self, ciphertext: str) -> tuple[int, str]:
        if not ciphertext.startswith("vault:v"):
            raise TransitError("invalid ciphertext: no prefix")
        digits, separator, encoded = ciphertext.removeprefix("vault:v").partition(":")
        if not separator:
            raise TransitError("invalid ciphertext: wrong number of fields")
        if re.fullmatch(r"[+-]?[0-9]+", digits) is None:
            raise TransitError("invalid ciphertext: version number could not be decoded")
        # Keys once started at 0, and 0 is read as 1 ever since.
        version = int(digits) or 1
        if version > len(self.versions):
            raise TransitError("invalid ciphertext: version is too new")
        if version < self.min_decryption_version:
            raise TransitError("ciphertext or signature version is disallowed by policy (too old)")
        return version, encoded


def _associated_data(body: dict[str, Any], *, binds: bool) -> bytes | None:
    given = body.get("associated_data", "")
    return _decode(given) if given and binds else None


def _decode(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise TransitError("failed to base64-decode plaintext") from None
