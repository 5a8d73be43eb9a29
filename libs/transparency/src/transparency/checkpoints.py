"""Checkpoints (c2sp.org/tlog-checkpoint): a log's size and root, as a signed note.

::

    <origin>
    <size, decimal>
    <base64 of the root>

    — <origin> <signature>

The log's key carries the origin as its name, and a checkpoint counts only when that key signed it. Extension lines are
refused: nobody could audit what they say.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from transparency.errors import CheckpointInvalidError
from transparency.merkle import EMPTY_ROOT, HASH_BYTES, SIZE_MAX
from transparency.notes import NoteSigner, open_note, parse_verifier_key

if TYPE_CHECKING:
    from collections.abc import Iterable

_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_LINES: Final = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tree of a log at one size."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """Return the text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


class CheckpointSigner:
    """The key by which a log signs its checkpoints."""

    def __init__(self, origin: str, seed: bytes) -> None:
        """Sign for the log `origin` with the Ed25519 key of this 32-byte seed."""
        self._note = NoteSigner(origin, seed)

    @property
    def verifier_key(self) -> str:
        """Return the verifier key that others need to open what this one signs."""
        return self._note.verifier.text

    def sign(self, checkpoint: Checkpoint) -> str:
        """Return the note. Raises ValueError for another log's checkpoint, or one that cannot be."""
        if checkpoint.origin != self._note.verifier.name:
            raise ValueError("a log signs its own checkpoints only")
        if not 0 <= checkpoint.size <= SIZE_MAX or len(checkpoint.root) != HASH_BYTES:
            raise ValueError("a checkpoint has a size of 0 or more and a root of 32 bytes")
        return self._note.sign(checkpoint.text)


def open_checkpoint(note: str, verifier_keys: Iterable[str], *, origin: str | None = None) -> Checkpoint:
    """Return the checkpoint in `note`, signed by one of these keys; of the log `origin`, if one is named.

    Raises:
        CheckpointInvalidError: it is malformed, not signed by the log's key, of another log, or a verifier key is
            malformed.
    """
    text, signed_by = open_note(note, [parse_verifier_key(each) for each in verifier_keys])
    checkpoint = _parse(text)
    if checkpoint.origin not in {each.name for each in signed_by}:
        raise CheckpointInvalidError("the note is not signed by the key of its log")
    if origin is not None and checkpoint.origin != origin:
        raise CheckpointInvalidError("the checkpoint is of another log")
    return checkpoint


def _parse(text: str) -> Checkpoint:
    lines = text.split("\n")
    if lines.pop() != "" or len(lines) != _LINES or not lines[0]:
        raise CheckpointInvalidError("a checkpoint has three lines: origin, size, root")
    origin, size, encoded = lines
    root = _root(encoded)
    if not _SIZE.fullmatch(size) or int(size) > SIZE_MAX or len(root) != HASH_BYTES:
        raise CheckpointInvalidError("the size or the root of the checkpoint is malformed")
    if size == "0" and root != EMPTY_ROOT:
        raise CheckpointInvalidError("a tree without leaves has one root only")
    return Checkpoint(origin, int(size), root)


def _root(encoded: str) -> bytes:
    try:
        root = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return b""
    return root if base64.b64encode(root).decode() == encoded else b""
