"""Tiles (c2sp.org/tlog-tiles): the hashes of a tree, kept 256 at a time, and the trees and proofs made of them.

A tile of level 0 holds the hashes of 256 consecutive leaves; one of level n + 1 holds the roots of 256 consecutive full
tiles of level n. A full tile never changes. What is not full yet is the edge of the tree: at most 255 hashes a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from transparency.merkle import HASH_BYTES, node_hash, root_of
from transparency.paths import Span, consistency_path, inclusion_path, perfect_nodes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transparency.paths import Node

TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT
TILE_BYTES: Final = TILE_WIDTH * HASH_BYTES
LEVELS_MAX: Final = 8
"""Levels of tiles of the largest tree."""


@dataclass(frozen=True, slots=True, order=True)
class TileId:
    """Which tile: its level, and its position among those of its level."""

    level: int
    position: int

    def width_at(self, size: int) -> int:
        """Return how many hashes the tile has in the tree of `size` leaves."""
        hashes = size >> (TILE_HEIGHT * self.level)
        return max(0, min(TILE_WIDTH, hashes - self.position * TILE_WIDTH))


@dataclass(frozen=True, slots=True)
class FullTile:
    """A tile that will never change, and its root."""

    tile_id: TileId
    hashes: bytes
    root: bytes


def edge_tiles(size: int) -> list[TileId]:
    """Return the tiles at the right edge of the tree of `size` leaves that are not full there, lowest first."""
    found = []
    for level in range(LEVELS_MAX):
        hashes = size >> (TILE_HEIGHT * level)
        if hashes % TILE_WIDTH:
            found.append(TileId(level, hashes // TILE_WIDTH))
    return found


class GrowingTree:
    """The edge of a tree: all that is needed to add leaves and to tell the root."""

    def __init__(self, size: int = 0, edge: Mapping[TileId, Sequence[bytes]] | None = None) -> None:
        """Go on from the tree of `size` leaves, whose `edge_tiles` hold these hashes.

        Raises:
            ValueError: the edge is not that of this size.
        """
        given = {} if edge is None else edge
        expected = edge_tiles(size)
        if {each: len(given.get(each, ())) for each in expected} != {each: each.width_at(size) for each in expected}:
            raise ValueError("these hashes are not the edge of a tree of this size")
        self._size = size
        self._rows: list[list[bytes]] = [[] for _ in range(LEVELS_MAX)]
        for tile_id in expected:
            self._rows[tile_id.level] = list(given[tile_id])

    @property
    def size(self) -> int:
        """Return how many leaves there are."""
        return self._size

    def copy(self) -> GrowingTree:
        """Return a tree that grows apart from this one."""
        other = GrowingTree()
        other._size = self._size
        other._rows = [list(row) for row in self._rows]
        return other

    def extend(self, leaf_hashes: Sequence[bytes]) -> list[FullTile]:
        """Add leaves, and return the tiles that they filled, lower ones before those over them."""
        filled: list[FullTile] = []
        taken = 0
        while taken < len(leaf_hashes):
            room = TILE_WIDTH - len(self._rows[0])
            added = leaf_hashes[taken : taken + room]
            self._rows[0].extend(added)
            self._size += len(added)
            taken += len(added)
            if len(self._rows[0]) == TILE_WIDTH:
                self._fold(filled)
        return filled

    def root(self) -> bytes:
        """Return the root of the tree as it stands."""
        # What lies right of a row's hashes is one smaller subtree, which is hashed as if it were the row's last.
        below: list[bytes] = []
        for row in self._rows:
            if row or below:
                below = [root_of([*row, *below])]
        return below[0] if below else root_of([])

    def _fold(self, filled: list[FullTile]) -> None:
        for level in range(LEVELS_MAX - 1):
            row = self._rows[level]
            if len(row) < TILE_WIDTH:
                return
            root = root_of(row)
            position = (self._size >> (TILE_HEIGHT * (level + 1))) - 1
            filled.append(FullTile(TileId(level, position), b"".join(row), root))
            self._rows[level] = []
            self._rows[level + 1].append(root)


class TiledTree:
    """A tree whose tiles are at hand: those that `tiles_of` names for what is asked."""

    def __init__(self, tiles: Mapping[TileId, bytes]) -> None:
        """Read from `tiles`, each the hashes of a tile, one after another; more than a tree has are not looked at."""
        self._rows = {
            (each.level, each.position): [[hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]]
            for each, hashes in tiles.items()
        }

    def root(self, size: int) -> bytes:
        """Return the root of the tree of `size` leaves. Raises KeyError when a tile is missing."""
        return self._hash_of(Span(0, size)) if size else root_of([])

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """Return the proof for a leaf. Raises KeyError when a tile is missing, ValueError when it is out of range."""
        return [self._hash_of(span) for span in inclusion_path(index, size)]

    def consistency_proof(self, old_size: int, new_size: int) -> list[bytes]:
        """Return the proof between two sizes. Raises KeyError and ValueError as above."""
        return [self._hash_of(span) for span in consistency_path(old_size, new_size)]

    def leaf_hash(self, index: int) -> bytes:
        """Return the hash of a leaf. Raises KeyError when its tile is missing."""
        return self._hash_of(Span(index, index + 1))

    def _hash_of(self, span: Span) -> bytes:
        *left, computed = [self._node(node) for node in perfect_nodes(span)]
        for each in reversed(left):
            computed = node_hash(each, computed)
        return computed

    def _node(self, node: Node) -> bytes:
        tile_id, height = tile_of(node)
        rows = self._rows[tile_id.level, tile_id.position]
        while len(rows) <= height:
            # A hash without a partner is not carried up: only nodes over full subtrees are asked for.
            below = rows[-1]
            rows.append([node_hash(one, two) for one, two in zip(below[::2], below[1::2], strict=False)])
        row = rows[height]
        offset = node.position - (tile_id.position << (TILE_HEIGHT - height))
        if offset >= len(row):
            raise KeyError(tile_id)
        return row[offset]


def tile_of(node: Node) -> tuple[TileId, int]:
    """Return the tile that tells a node's hash, and how high above the tile's own hashes it stands."""
    level, height = divmod(node.level, TILE_HEIGHT)
    return TileId(level, node.position >> (TILE_HEIGHT - height)), height


def tiles_of(spans: Iterable[Span]) -> set[TileId]:
    """Return the tiles from which these parts of a tree can be hashed."""
    return {tile_of(node)[0] for span in spans for node in perfect_nodes(span)}
