"""Looks for a secret wherever it must not be, in every form that a careless program might write it in."""

import base64
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_PART_LENGTH = 16
# Whatever holds this many characters more than a part in a row is found.
_PART_STEP = 8
_CHUNK_BYTES = 4 * 1024 * 1024


class Canary:
    """A secret, and the forms in which it would be recognised."""

    def __init__(self, secret: str) -> None:
        """Take the secret. Its last four characters may be shown to its owner; the parts looked for end before them."""
        self._forms = sorted(set(_forms(secret.encode())))

    def sightings(self, data: bytes, *, where: str) -> list[str]:
        """Return where in the data the secret stands, without saying it again."""
        return [
            f"{where}: form {number} at byte {data.find(form)}"
            for number, form in enumerate(self._forms)
            if form in data
        ]

    def sightings_in_files(self, files: Iterable[Path]) -> list[str]:
        """Return which files hold the secret; gzip members inside are looked into as well."""
        return [
            sighting
            for path in files
            for chunk in _chunks(path)
            for sighting in self.sightings(chunk, where=str(path)) + self._packed(chunk, path)
        ]

    def _packed(self, data: bytes, path: Path) -> list[str]:
        found: list[str] = []
        for start in re.finditer(rb"\x1f\x8b\x08", data):
            try:
                unpacked = zlib.decompressobj(wbits=31).decompress(data[start.start() :], _CHUNK_BYTES)
            except zlib.error:
                continue
            found += self.sightings(unpacked, where=f"{path} (gzip)")
        return found


def _forms(secret: bytes) -> Iterator[bytes]:
    """Yield parts of the secret, plain, reversed, in hex, and in base64 at each of its alignments."""
    # The head is the vendor's prefix, which says nothing.
    parts = [secret[start : start + _PART_LENGTH] for start in range(8, len(secret) - _PART_LENGTH - 4, _PART_STEP)]
    for part in parts:
        yield part
        yield part[::-1]
        yield part.hex().encode()
        yield part.hex().upper().encode()
    for shift in range(3):
        packed = base64.b64encode(secret[shift:])
        # Without the first and last characters, which depend on what stands around.
        yield packed[4:28]
        yield base64.urlsafe_b64encode(secret[shift:])[4:28]


def _chunks(path: Path) -> Iterator[bytes]:
    """Yield a file in pieces that overlap, so that nothing hides on a border."""
    kept = b""
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield kept + piece
            kept = piece[-256:]
