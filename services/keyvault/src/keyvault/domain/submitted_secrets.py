"""A secret as its owner sent it: trimming, the checks of its shape, and the fingerprint by which its owner knows it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from keyvault.domain.canonical import encode_fields
from keyvault.domain.keyring import KeyPurpose
from servicekit.errors import FieldViolation, InvalidArgumentError
from servicekit.secrets import Secret

if TYPE_CHECKING:
    from keyvault.domain.keyring import Keyring

SUBMITTED_BYTES_MAX: Final = 4096
FINGERPRINT_HEX_DIGITS: Final = 16
SUFFIX_CHARACTERS: Final = 4
GUESSABLE_BELOW_BYTES: Final = 32

_EQUALITY_LABEL: Final = "byok/keyvault/v1/equal-secrets"
_UTF8_WHITE_SPACE: Final = ("\ufeff", "\u00a0", "\u200b", "\u2028", "\u2029")
_SECRET: Final = re.compile(rb"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Adjustment:
    """Something in the request that was put right and should be told to the owner."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class SubmittedSecret:
    """A secret in the form in which it is sealed, and what was put right on the way."""

    secret: Secret
    adjustments: tuple[Adjustment, ...]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What an owner sees of a secret; both parts are empty where they would help to guess it."""

    digest: str
    suffix: str


def parse_secret(submitted: bytes, *, field: str) -> SubmittedSecret:
    """Return the secret without the white space around it.

    Raises:
        InvalidArgumentError: empty, too long, not UTF-8, or with characters that no HTTP header may carry.
    """
    if len(submitted) > SUBMITTED_BYTES_MAX:
        _refuse(field, "SECRET_TOO_LONG", f"Send at most {SUBMITTED_BYTES_MAX} bytes; this is not a provider key.")
    try:
        text = submitted.decode()
    except UnicodeDecodeError:
        _refuse(field, "SECRET_NOT_TEXT", "Send the key as text, as the provider shows it; these bytes are not UTF-8.")
    trimmed = text.strip().strip("".join(_UTF8_WHITE_SPACE)).strip().encode()
    if not trimmed:
        _refuse(field, "SECRET_EMPTY", "Send the provider's key; there is nothing but white space.")
    if not _SECRET.fullmatch(trimmed):
        remedy = "Send the key alone: printable ASCII without spaces, line breaks or control characters inside it."
        _refuse(field, "SECRET_HAS_BAD_CHARACTERS", remedy)
    adjustments = () if trimmed == submitted else (Adjustment(field, "White space around the key was removed."),)
    return SubmittedSecret(Secret(trimmed), adjustments)


def fingerprint(secret: Secret, *, has_vendor_format: bool) -> Fingerprint:
    """Return what the owner may see of `secret`.

    A short secret without a vendor's format may be a word that its owner made up, and could be found by hashing
    guesses.
    """
    plaintext = secret.reveal()
    if len(plaintext) < GUESSABLE_BELOW_BYTES and not has_vendor_format:
        return Fingerprint("", "")
    digest = hashlib.sha256(plaintext).hexdigest()[:FINGERPRINT_HEX_DIGITS]
    return Fingerprint(digest, plaintext[-SUFFIX_CHARACTERS:].decode())


def equality_mac(keyring: Keyring, secret: Secret, *, version: int) -> bytes:
    """Return the keyed HMAC by which equal secrets are found without the secrets."""
    context = keyring.mac(KeyPurpose.EQUALITY_MAC, version)
    context.update(encode_fields(_EQUALITY_LABEL, (secret.reveal(),)))
    return context.digest()


def _refuse(field: str, reason: str, remedy: str) -> NoReturn:
    raise InvalidArgumentError(violations=[FieldViolation(field=field, reason=reason, description=remedy)])
