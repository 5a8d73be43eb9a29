"""The tree over the audit log, in memory, beside `memory.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from keyvault.domain.audit_log import TOLD_KINDS, decode_leaf, leaf_hash
from keyvault.ports import AuditTree, LeafFilter, LeafPage, StoredLeaf, TreeState
from transparency.tiles import TILE_WIDTH, FullTile, TileId

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime, timedelta

    from keyvault.adapters.memory import MemoryAuthority
    from servicekit.clock import Clock


class MemoryTree(AuditTree):
    """Tiles and checkpoints of one process. `tampered` holds rows that stand in place of what was written."""

    def __init__(self, authority: MemoryAuthority, clock: Clock) -> None:
        """Read the entries of `authority`; tell the age of checkpoints by `clock`."""
        self._authority = authority
        self._clock = clock
        self.tampered: dict[int, StoredLeaf | None] = {}
        self.tiles: dict[TileId, FullTile] = {}
        self.checkpoints: dict[int, tuple[str, datetime]] = {}

    @override
    async def state(self) -> TreeState:
        now = self._clock.now()
        size = max(self.checkpoints, default=0)
        note, made = self.checkpoints.get(size, ("", now))
        head = len(self._authority.leaves)
        rows = self._rows()
        last = rows[-1].audit_index if rows else 0
        return TreeState(head=head, last_entry=last, size=size, note=note, age=now - made)

    @override
    async def read_leaves(self, after: int, *, up_to: int, limit: int) -> list[StoredLeaf]:
        return [row for row in self._rows() if after < row.audit_index <= up_to][:limit]

    @override
    async def find_leaves(self, leaf_filter: LeafFilter) -> LeafPage:
        rows = self._rows()[::-1] if leaf_filter.newest_first else self._rows()
        fitting = [row for row in rows if _fits(row, leaf_filter)]
        scan_max = leaf_filter.scan_max if leaf_filter.kinds else leaf_filter.limit
        scanned = fitting[:scan_max]
        found = [row for row in scanned if not leaf_filter.kinds or row.kind in leaf_filter.kinds][: leaf_filter.limit]
        if len(found) == leaf_filter.limit:
            return LeafPage(found, found[-1].audit_index)
        return LeafPage(found, scanned[-1].audit_index if len(scanned) == scan_max else None)

    @override
    async def read_told(self, after: int, *, up_to: int, limit: int) -> list[StoredLeaf]:
        rows = await self.read_leaves(after, up_to=up_to, limit=len(self._authority.leaves))
        return [row for row in rows if row.kind in TOLD_KINDS][:limit]

    @override
    async def read_tiles(self, tile_ids: Collection[TileId]) -> Mapping[TileId, bytes]:
        return {each: self.tiles[each].hashes for each in tile_ids if each in self.tiles}

    @override
    async def read_edge(self, tile_id: TileId) -> list[bytes]:
        first = tile_id.position * TILE_WIDTH
        if tile_id.level == 0:
            return [row.leaf_hash for row in self._rows() if first < row.audit_index <= first + TILE_WIDTH]
        below = [TileId(tile_id.level - 1, position) for position in range(first, first + TILE_WIDTH)]
        return [self.tiles[each].root for each in below if each in self.tiles]

    @override
    async def put_tiles(self, tiles: Sequence[FullTile]) -> list[TileId]:
        return [each.tile_id for each in tiles if self.tiles.setdefault(each.tile_id, each) != each]

    @override
    async def put_checkpoint(self, size: int, note: str) -> str:
        return self.checkpoints.setdefault(size, (note, self._clock.now()))[0]

    @override
    async def forget_checkpoints(self, age: timedelta) -> None:
        oldest, newest = self._clock.now() - age, max(self.checkpoints, default=0)
        self.checkpoints = {
            size: each for size, each in self.checkpoints.items() if size == newest or each[1] >= oldest
        }

    def _rows(self) -> list[StoredLeaf]:
        rows: dict[int, StoredLeaf | None] = {
            position: StoredLeaf(position, int(kind), decode_leaf(leaf).subject, leaf, leaf_hash(leaf))
            for position, (kind, leaf) in enumerate(self._authority.leaves, start=1)
        }
        rows |= self.tampered
        return [row for _, row in sorted(rows.items()) if row is not None]


def _fits(row: StoredLeaf, leaf_filter: LeafFilter) -> bool:
    if leaf_filter.subject is not None and row.subject != leaf_filter.subject:
        return False
    if leaf_filter.newest_first:
        return not leaf_filter.after or row.audit_index < leaf_filter.after
    return row.audit_index > leaf_filter.after
