"""The full verification of the log: everything is computed again from the leaves, and compared with what is kept.

It believes no column, tile or checkpoint. A difference between a tile and the leaves does not say by itself which of
the two was edited: the next signed checkpoint does, because only the genuine hashes lead to its root. So what differs
is held back until then. A leaf behind the newest checkpoint is told by its seal alone, and two such leaves that were
swapped are not told at all before they are signed over: their order was nobody's word yet.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import leaf_hash
from transparency.merkle import HASH_BYTES
from transparency.tiles import TILE_WIDTH, GrowingTree, TileId

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from transparency.tiles import FullTile

FINDINGS_MAX: Final = 1_000
REMEMBERED_HASHES_MAX: Final = 262_144
"""Leaves within which a copy is told; the integration told it once already, before it signed."""


class FindingKind(enum.IntEnum):
    """What is wrong. The numbers are those of `LogFindingKind`."""

    LEAF_EDITED = 1
    LEAF_MISSING = 2
    LEAF_FORGED = 3
    TRUNCATED = 4
    TREE_FORKED = 5
    COLUMN_DISAGREES = 6
    ROW_ROLLED_BACK = 7
    ROW_FORGED = 8
    ROW_MISSING = 9


class LogCheck(enum.Enum):
    """What is compared; a test takes one out to show what it finds."""

    HASHES = enum.auto()
    SEALS = enum.auto()
    COPIES = enum.auto()
    ORDER = enum.auto()
    TILES = enum.auto()
    CHECKPOINTS = enum.auto()
    END = enum.auto()
    ROWS = enum.auto()


ALL_CHECKS: Final = frozenset(LogCheck)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and where: an audit index, 0 for nowhere in particular, or a row."""

    kind: FindingKind
    audit_index: int
    description: str
    row_id: str = ""


class Findings:
    """What was found, up to a bound."""

    def __init__(self, checks: Collection[LogCheck]) -> None:
        """Take what these checks find."""
        self.checks = frozenset(checks)
        self.found: list[Finding] = []

    def add(self, check: LogCheck, finding: Finding) -> None:
        """Take a finding of a check."""
        if check in self.checks and len(self.found) < FINDINGS_MAX and finding not in self.found[-8:]:
            self.found.append(finding)


class TreeVerifier:
    """The tree of the log, built again from its leaves."""

    def __init__(self, tree: GrowingTree, findings: Findings) -> None:
        """Go on from `tree`."""
        self._tree = tree
        self._findings = findings
        self._differing: list[Finding] = []
        self._good_size = tree.size
        self._is_forked = False
        self._order: deque[bytes] = deque()
        self._seen: dict[bytes, int] = {}

    @property
    def size(self) -> int:
        """Return how many leaves were taken."""
        return self._tree.size

    def hash_of(self, audit_index: int, leaf: bytes, stored_hash: bytes) -> bytes:
        """Return the hash that counts for a leaf that is there, after comparing it with what stands beside it."""
        if not leaf:
            self._edited(audit_index, "the leaf is empty, and no entry says that it was forgotten")
            return stored_hash
        computed = leaf_hash(leaf)
        if computed != stored_hash:
            self._edited(audit_index, "the leaf does not have the hash that stands beside it")
        return computed

    def missing(self, audit_index: int) -> None:
        """Take note that an index is not there."""
        finding = Finding(FindingKind.LEAF_MISSING, audit_index, "the log has no entry with this index")
        self._findings.add(LogCheck.ORDER, finding)

    def forged(self, audit_index: int, kind: FindingKind, description: str) -> None:
        """Take note of a leaf whose seal is not this service's, or does not fit its columns."""
        self._findings.add(LogCheck.SEALS, Finding(kind, audit_index, description))

    def extend(self, hashes: Sequence[bytes]) -> list[FullTile]:
        """Take leaves in order, and return the tiles that they filled."""
        for audit_index, digest in enumerate(hashes, start=self.size + 1):
            first = self._seen.setdefault(digest, audit_index)
            if first != audit_index and digest != bytes(HASH_BYTES):
                said = f"the leaf is a copy of that at {first}"
                self._findings.add(LogCheck.COPIES, Finding(FindingKind.LEAF_FORGED, audit_index, said))
            self._order.append(digest)
        while len(self._order) > REMEMBERED_HASHES_MAX:
            self._seen.pop(self._order.popleft(), None)
        return self._tree.extend(hashes)

    def compare_tiles(self, filled: Sequence[FullTile], stored: Mapping[TileId, tuple[bytes, bytes]]) -> None:
        """Compare the tiles that were filled with those that are stored."""
        for tile in filled:
            hashes, root = stored.get(tile.tile_id, (b"", b""))
            if (hashes, root) != (tile.hashes, tile.root) and LogCheck.TILES in self._findings.checks:
                self._differing += _differences(tile, hashes)

    def compare_root(self, size: int, root: bytes) -> None:
        """Compare the tree as it stands with a root that was signed for it."""
        is_genuine = self._tree.root() == root
        for finding in self._differing:
            if is_genuine:
                said = "a tile of the tree holds other hashes than the leaves give"
                kind = FindingKind.TREE_FORKED
                self._findings.add(LogCheck.TILES, Finding(kind, finding.audit_index, said, finding.row_id))
            elif not finding.row_id:
                self._findings.add(LogCheck.TILES, finding)
        self._differing = []
        if is_genuine:
            self._good_size, self._is_forked = size, False
        elif not self._is_forked:
            # Every later root differs as well; the first says where it began.
            self._is_forked = True
            said = f"the entries from here to {size} do not give the root that was signed at {size}"
            finding = Finding(FindingKind.TREE_FORKED, self._good_size + 1, said)
            self._findings.add(LogCheck.CHECKPOINTS, finding)

    def _edited(self, audit_index: int, description: str) -> None:
        self._findings.add(LogCheck.HASHES, Finding(FindingKind.LEAF_EDITED, audit_index, description))


def _differences(tile: FullTile, hashes: bytes) -> list[Finding]:
    """Return where a tile differs: at leaves, or as a whole."""
    level, position = tile.tile_id.level, tile.tile_id.position
    row_id = f"audit_tiles/{level}/{position}"
    first = position * TILE_WIDTH ** (level + 1) + 1
    found = [Finding(FindingKind.TREE_FORKED, first, "a tile of the tree is not what the leaves give", row_id)]
    if level or len(hashes) != len(tile.hashes):
        return found
    said = "the leaf is not the one whose hash the tree holds: edited, or moved"
    return found + [
        Finding(FindingKind.LEAF_EDITED, first + at, said)
        for at in range(TILE_WIDTH)
        if hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES] != tile.hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES]
    ]
