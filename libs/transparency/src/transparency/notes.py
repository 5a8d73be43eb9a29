"""Signed notes (c2sp.org/signed-note) with Ed25519 keys: a text, an empty line, and a line for each signature.

::

    <text, its last line ended>
    <empty line>
    — <key name> <base64 of: u32 key id | signature>

    verifier key:  <key name>+<key id as 8 hex digits>+<base64 of: 0x01 | public key>
    key id:        the first 4 bytes of SHA-256(key name | 0x0A | 0x01 | public key)

A signature of a key that is not known is passed over; one of a known key that does not verify condemns the note.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from transparency.errors import CheckpointInvalidError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NOTE_CHARACTERS_MAX: Final = 64 * 1024
SIGNATURES_MAX: Final = 64
VERIFIER_KEY_CHARACTERS_MAX: Final = 1024

_ED25519: Final = b"\x01"
_KEY_ID_BYTES: Final = 4
_PUBLIC_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_LINE_START: Final = "\u2014 "
# Nor a lone surrogate: it has no bytes that could be hashed.
_KEY_NAME: Final = re.compile(r"[^\s+\x00-\x1f\ud800-\udfff]+")
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")


@dataclass(frozen=True, slots=True)
class NoteVerifier:
    """A public key that signs notes under a name."""

    name: str
    public_key: bytes

    @property
    def key_id(self) -> bytes:
        """Return the four bytes by which a signature line names this key."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key).digest()[:_KEY_ID_BYTES]

    @property
    def text(self) -> str:
        """Return the verifier key, as it is handed around."""
        return f"{self.name}+{self.key_id.hex()}+{_encode(_ED25519 + self.public_key)}"


def parse_verifier_key(text: str) -> NoteVerifier:
    """Return the key in `text`.

    Raises:
        CheckpointInvalidError: this is no verifier key of the one supported kind, or its id is not its own.
    """
    name, _, rest = text.partition("+") if len(text) <= VERIFIER_KEY_CHARACTERS_MAX else ("", "", "")
    key_id, _, encoded = rest.partition("+")
    key = _decode(encoded)
    if not _KEY_NAME.fullmatch(name) or len(key) != 1 + _PUBLIC_KEY_BYTES or key[:1] != _ED25519:
        raise CheckpointInvalidError("this is no verifier key of an Ed25519 key (c2sp.org/signed-note)")
    verifier = NoteVerifier(name, key[1:])
    if verifier.key_id.hex() != key_id:
        raise CheckpointInvalidError("the id of the verifier key is not that of its name and public key")
    return verifier


class NoteSigner:
    """A private key that signs notes under a name."""

    def __init__(self, name: str, seed: bytes) -> None:
        """Sign with the Ed25519 key of this 32-byte seed. Raises ValueError for a name that no line could carry."""
        if not _KEY_NAME.fullmatch(name):
            raise ValueError("the name of a key has no spaces, no plus and no control characters")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.verifier: Final = NoteVerifier(name, self._key.public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """Return the note of `text`. Raises ValueError for a text that no note could carry."""
        if not text.endswith("\n") or _CONTROL.search(text):
            raise ValueError("the text of a note ends its last line and has no control characters")
        signature = _encode(self.verifier.key_id + self._key.sign(text.encode()))
        return f"{text}\n{_LINE_START}{self.verifier.name} {signature}\n"


def joined_notes(notes: Iterable[str]) -> str:
    """Return one note with the signatures of several on the same text. Raises ValueError when they are not on one."""
    parts = [note.rpartition("\n\n") for note in notes]
    if len({text for text, _, _ in parts}) != 1:
        raise ValueError("signatures are joined on one text only")
    return parts[0][0] + "\n\n" + "".join(signatures for _, _, signatures in parts)


def open_note(note: str, verifiers: Iterable[NoteVerifier]) -> tuple[str, list[NoteVerifier]]:
    """Return the text of `note`, and which of `verifiers` signed it: at least one did.

    Raises:
        CheckpointInvalidError: it is malformed, no known key signed it, or a signature of a known key is wrong.
    """
    text, lines = _split(note)
    known = {(each.name, each.key_id): each for each in verifiers}
    signed_by = []
    for line in lines:
        name, signature = _signature(line)
        verifier = known.pop((name, signature[:_KEY_ID_BYTES]), None)
        if verifier is not None:
            _verify(verifier, signature[_KEY_ID_BYTES:], text)
            signed_by.append(verifier)
    if not signed_by:
        raise CheckpointInvalidError("no known key signed the note")
    return text, signed_by


def _split(note: str) -> tuple[str, Sequence[str]]:
    if len(note) > NOTE_CHARACTERS_MAX:
        raise CheckpointInvalidError("the note is too long")
    if _CONTROL.search(note):
        raise CheckpointInvalidError("the note holds control characters")
    text, gap, signatures = note.rpartition("\n\n")
    lines = signatures.split("\n")
    if not gap or not text or lines.pop() != "" or not lines:
        raise CheckpointInvalidError("a note is a text, an empty line, and lines of signatures")
    if len(lines) > SIGNATURES_MAX:
        raise CheckpointInvalidError("the note has too many signatures")
    return text + "\n", lines


def _signature(line: str) -> tuple[str, bytes]:
    name, _, encoded = line.removeprefix(_LINE_START).partition(" ")
    signature = _decode(encoded)
    if not line.startswith(_LINE_START) or not _KEY_NAME.fullmatch(name) or len(signature) <= _KEY_ID_BYTES:
        raise CheckpointInvalidError("a line of the note is no signature")
    return name, signature


def _verify(verifier: NoteVerifier, signature: bytes, text: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(verifier.public_key).verify(signature, _bytes_of(text))
    except (InvalidSignature, ValueError):
        raise CheckpointInvalidError(f"the signature of {verifier.name} is wrong") from None


def _bytes_of(text: str) -> bytes:
    # A lone surrogate has no bytes that could have been signed; UnicodeEncodeError is a ValueError.
    return text.encode()


def _encode(plain: bytes) -> str:
    return base64.b64encode(plain).decode()


def _decode(encoded: str) -> bytes:
    """Return what `encoded` stands for, or nothing when it is not the one base64 text of it."""
    try:
        plain = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return b""
    return plain if _encode(plain) == encoded else b""
