"""Files of the audit log, and their verification with neither network, database nor key.

An export is lines of JSON: a header, then the leaves in order; packed when its name ends in `.gz`. A bundle is one JSON
object: a leaf, its proof, and the checkpoint that the proof leads to. What a file says of itself is believed nowhere:
the verifier keys, and whatever checkpoint was pinned, come from whoever verifies.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import gzip
import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from keyvault.domain.audit_log import decode_leaf, leaf_hash
from keyvault.domain.canonical import CanonicalFormError
from transparency.checkpoints import Checkpoint, open_checkpoint
from transparency.merkle import HASH_BYTES, verify_inclusion
from transparency.tiles import GrowingTree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import TextIO

EXPORT_FORMAT: Final = "byok-audit-export/1"
BUNDLE_FORMAT: Final = "byok-audit-bundle/1"
_FOUND_MAX: Final = 1_000
_LINE_CHARACTERS_MAX: Final = 1 << 20


class FileInvalidError(Exception):
    """The file is no export and no bundle; the message says where."""


@dataclass
class Verdict:
    """What the verification of an export found."""

    entries: int = 0
    found: list[str] = field(default_factory=list)
    covered: int = 0

    def add(self, line: str) -> None:
        """Take a finding, up to a bound."""
        if len(self.found) < _FOUND_MAX:
            self.found.append(line)


def open_for_writing(path: Path) -> TextIO:
    """Open a new export; it is packed when its name ends in `.gz`. Raises OSError."""
    return gzip.open(path, "xt", encoding="utf-8") if path.suffix == ".gz" else path.open("x", encoding="utf-8")


def header_line(*, checkpoint: str, first_index: int, tree_size: int, verifier_keys: Sequence[str]) -> str:
    """Return the first line of an export."""
    return json.dumps(
        {
            "format": EXPORT_FORMAT,
            "origin": checkpoint.partition("\n")[0],
            "first_index": first_index,
            "tree_size": tree_size,
            "checkpoint": checkpoint,
            "verifier_keys": list(verifier_keys),
        }
    )


def leaf_line(audit_index: int, leaf: bytes, digest: bytes) -> str:
    """Return the line of one leaf."""
    return json.dumps({"index": audit_index, "leaf": base64.b64encode(leaf).decode(), "hash": digest.hex()})


def verify_export(paths: Sequence[Path], pinned: Sequence[str], verifier_keys: Sequence[str]) -> Verdict:
    """Verify export files that follow one another from the first entry on.

    Every checkpoint in the files, and every pinned one, must be signed by one of the keys and fit the leaves.

    Raises:
        FileInvalidError: a file is no export.
        CheckpointInvalidError: a pinned checkpoint is not one, or not signed by these keys.
        OSError: a file cannot be read.
    """
    checkpoints = [open_checkpoint(note, verifier_keys) for note in pinned]
    checkpoints += [open_checkpoint(_text(_header(path), "checkpoint"), verifier_keys) for path in paths]
    if len({each.origin for each in checkpoints}) > 1:
        raise FileInvalidError("the checkpoints are of different logs")
    checkpoints.sort(key=lambda each: each.size)
    verdict, tree = Verdict(), GrowingTree()
    due = list(checkpoints)
    for path in paths:
        for record in _records(path):
            _take(tree, record, verdict)
            while due and due[0].size <= tree.size:
                _compare(tree, due.pop(0), verdict)
    for checkpoint in due:
        verdict.add(f"{tree.size + 1}: TRUNCATED: the leaves end here, and {checkpoint.size} were signed")
    return verdict


def verify_bundle(path: Path, verifier_keys: Sequence[str]) -> tuple[int, bytes, Checkpoint]:
    """Verify a bundle, and return index, leaf and the checkpoint that it was proved by.

    Raises:
        FileInvalidError: it is no bundle, or leaf and hash disagree.
        CheckpointInvalidError: its checkpoint is not signed by these keys.
        ProofInvalidError: the proof does not lead to the checkpoint's root.
        OSError: it cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        bundle = _parsed(file.read(_LINE_CHARACTERS_MAX), str(path))
    if bundle.get("format") != BUNDLE_FORMAT or not isinstance(bundle.get("proof"), list):
        raise FileInvalidError(f"{path} is no bundle of an audit entry")
    index, leaf, digest = _leaf_of(bundle, str(path))
    checkpoint = open_checkpoint(_text(bundle, "checkpoint"), verifier_keys)
    if leaf_hash(leaf) != digest:
        raise FileInvalidError("the leaf does not have the hash that is proved")
    proof = [_hex(each) for each in bundle["proof"]]
    verify_inclusion(leaf_hash=digest, index=index - 1, size=checkpoint.size, proof=proof, root=checkpoint.root)
    return index, leaf, checkpoint


def bundle_of(audit_index: int, leaf: bytes, digest: bytes, *, proof: Sequence[bytes], checkpoint: str) -> str:
    """Return a bundle."""
    return json.dumps(
        {
            "format": BUNDLE_FORMAT,
            "index": audit_index,
            "leaf": base64.b64encode(leaf).decode(),
            "hash": digest.hex(),
            "proof": [each.hex() for each in proof],
            "checkpoint": checkpoint,
        },
        indent=2,
    )


def _take(tree: GrowingTree, record: dict[str, Any], verdict: Verdict) -> None:
    index, leaf, digest = _leaf_of(record, "the export")
    if index != tree.size + 1:
        verdict.add(f"{tree.size + 1}: LEAF_MISSING: {index} follows {tree.size}")
        # Stand-ins keep later indexes in their places; a gap too large for that ends what can be said.
        if not tree.size < index - 1 <= tree.size + _FOUND_MAX:
            raise FileInvalidError(f"the leaves do not follow one another: {index} comes after {tree.size}")
        tree.extend([bytes(HASH_BYTES)] * (index - 1 - tree.size))
    with contextlib.suppress(CanonicalFormError):
        decode_leaf(leaf)
        if leaf_hash(leaf) == digest:
            tree.extend([digest])
            verdict.entries += 1
            return
    verdict.add(f"{index}: LEAF_EDITED: the leaf is none, or does not have the hash beside it")
    tree.extend([leaf_hash(leaf) if leaf else digest])
    verdict.entries += 1


def _compare(tree: GrowingTree, checkpoint: Checkpoint, verdict: Verdict) -> None:
    if tree.size == checkpoint.size and tree.root() == checkpoint.root:
        verdict.covered = checkpoint.size
    else:
        said = f"the leaves from here to {checkpoint.size} do not give the root that was signed"
        verdict.add(f"{verdict.covered + 1}: TREE_FORKED: {said}")


def _header(path: Path) -> dict[str, Any]:
    with _opened(path) as file:
        header = _parsed(file.readline(_LINE_CHARACTERS_MAX), str(path))
    if header.get("format") != EXPORT_FORMAT:
        raise FileInvalidError(f"{path} is no export of an audit log")
    return header


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        file.readline(_LINE_CHARACTERS_MAX)
        while line := file.readline(_LINE_CHARACTERS_MAX):
            yield _parsed(line, str(path))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as packed:
                yield packed
        else:
            with path.open(encoding="utf-8") as plain:
                yield plain
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError, zlib.error) as error:
        raise FileInvalidError(f"{path} is cut, or no text") from error


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise FileInvalidError(f"{where} holds a line that is no JSON object")
    return record


def _leaf_of(record: dict[str, Any], where: str) -> tuple[int, bytes, bytes]:
    index, leaf, digest = record.get("index"), record.get("leaf"), _hex(record.get("hash"))
    if type(index) is not int or index < 1 or not isinstance(leaf, str):
        raise FileInvalidError(f"{where} holds a line that is no leaf")
    try:
        return index, base64.b64decode(leaf, validate=True), digest
    except (binascii.Error, ValueError):
        raise FileInvalidError(f"{where} holds a leaf at {index} that is not base64") from None


def _hex(text: object) -> bytes:
    try:
        digest = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        digest = b""
    if len(digest) != HASH_BYTES:
        raise FileInvalidError("a hash has 64 hex digits")
    return digest


def _text(record: dict[str, Any], name: str) -> str:
    text = record.get(name)
    if not isinstance(text, str):
        raise FileInvalidError(f"{name} is missing")
    return text
