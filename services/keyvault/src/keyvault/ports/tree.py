"""The tree over the audit log, and the log as it is read with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transparency.tiles import FullTile, TileId


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeState:
    """How far log and tree reach, in one snapshot. `note` is empty when nothing was ever signed."""

    head: int
    last_entry: int
    size: int
    note: str
    age: timedelta


class StoredLeaf(NamedTuple):
    """A row of the log as it is stored: not to be believed before it is checked."""

    audit_index: int
    kind: int
    subject: str
    leaf: bytes
    leaf_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafFilter:
    """Which entries to read. `subject` None: of any; no kinds: of all. After `after`, in the direction of reading.

    Newest first, `after` is the index before which to begin, 0 for the end of the log.
    """

    subject: str | None = None
    kinds: Collection[int] = ()
    after: int = 0
    newest_first: bool = False
    limit: int = 50
    scan_max: int = 10_000


@dataclass(frozen=True, slots=True)
class LeafPage:
    """Entries that fit, in the order of reading. `read_to` is the last that was looked at; None when none are left."""

    leaves: Sequence[StoredLeaf]
    read_to: int | None


class AuditTree(Protocol):
    """The log's entries, tiles and checkpoints. Every method raises UnavailableError when the store is away.

    Only full tiles are stored. The hashes of the tiles at the edge are those of the newest entries, and the roots of
    the tiles below: entries may be dropped up to the last full tile of level 0, and none after it.
    """

    async def state(self) -> TreeState:
        """Return how far log and tree reach."""
        ...

    async def read_leaves(self, after: int, *, up_to: int, limit: int) -> list[StoredLeaf]:
        """Return the entries after an index, up to and with another, in order."""
        ...

    async def find_leaves(self, leaf_filter: LeafFilter) -> LeafPage:
        """Return the entries that fit."""
        ...

    async def read_told(self, after: int, *, up_to: int, limit: int) -> list[StoredLeaf]:
        """Return the entries of `TOLD_KINDS` after an index, up to and with another, in order."""
        ...

    async def read_tiles(self, tile_ids: Collection[TileId]) -> Mapping[TileId, bytes]:
        """Return those of these full tiles that are stored."""
        ...

    async def read_edge(self, tile_id: TileId) -> list[bytes]:
        """Return the hashes that a tile that is not full has so far: of entries, or roots of tiles below."""
        ...

    async def put_tiles(self, tiles: Sequence[FullTile]) -> list[TileId]:
        """Store tiles that are not stored yet; return which of these are stored with other hashes."""
        ...

    async def put_checkpoint(self, size: int, note: str) -> str:
        """Store a checkpoint unless one of this size is stored; return what is stored."""
        ...

    async def forget_checkpoints(self, age: timedelta) -> None:
        """Forget checkpoints that are older than `age`; the newest stays."""
        ...
