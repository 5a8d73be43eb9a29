"""What every adapter of the tree over the log must do. Run once per adapter, in the test modules beside this one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Protocol

import pytest

from keyvault.domain.audit_log import TOLD_KINDS, AuditEntry, EntryKind, leaf_hash
from keyvault.ports import AuditLog, AuditTree, LeafFilter
from services.keyvault.tests.unit.builders import NOW
from transparency.tiles import TILE_BYTES, FullTile, GrowingTree, TileId


class LogAndTree(Protocol):
    """An adapter under test, with the log that its tree is over."""

    log: AuditLog
    tree: AuditTree


def entry(kind: EntryKind = EntryKind.LEASE_GRANTED, key_id: str = "k") -> AuditEntry:
    """Return an entry of a key."""
    return AuditEntry(kind=kind, time=NOW, caller="test", provider_key_id=key_id)


def tile(position: int, level: int = 0, fill: int = 1) -> FullTile:
    """Return a tile."""
    return FullTile(TileId(level, position), bytes([fill]) * TILE_BYTES, bytes([fill, position % 256]) * 16)


def found(page: Any) -> list[int]:
    """Return the indexes of a page."""
    return [row.audit_index for row in page.leaves]


class AuditTreeContract:
    """Entries, tiles and checkpoints."""

    async def test_an_empty_log_has_no_tree(self, both: LogAndTree) -> None:
        """Nothing was written, nothing was signed."""
        state = await both.tree.state()
        assert (state.head, state.last_entry, state.size, state.note) == (0, 0, 0, "")
        assert await both.tree.read_leaves(0, up_to=100, limit=100) == []
        assert found(await both.tree.find_leaves(LeafFilter())) == []
        assert await both.tree.read_edge(TileId(0, 0)) == await both.tree.read_edge(TileId(1, 0)) == []

    async def test_entries_are_read_with_what_stands_beside_them(self, both: LogAndTree) -> None:
        """Index, kind, subject, leaf and hash, in order, between two indexes."""
        await both.log.append([entry(key_id=f"k{number}") for number in range(10)])
        rows = await both.tree.read_leaves(2, up_to=7, limit=100)
        assert [row.audit_index for row in rows] == [3, 4, 5, 6, 7]
        assert [(row.kind, row.subject) for row in rows[:2]] == [(100, "key/k2"), (100, "key/k3")]
        assert all(row.leaf_hash == leaf_hash(row.leaf) for row in rows)
        assert [row.audit_index for row in await both.tree.read_leaves(2, up_to=7, limit=2)] == [3, 4]
        state = await both.tree.state()
        assert (state.head, state.last_entry) == (10, 10)
        assert await both.tree.read_edge(TileId(0, 0)) == [
            row.leaf_hash for row in await both.tree.read_leaves(0, up_to=10, limit=10)
        ]

    async def test_entries_are_found_in_either_direction_page_by_page(self, both: LogAndTree) -> None:
        """By subject, from either end, with where to go on."""
        await both.log.append([entry(key_id=f"k{number % 2}") for number in range(10)])
        forward = await both.tree.find_leaves(LeafFilter(subject="key/k0", limit=3))
        assert (found(forward), forward.read_to) == ([1, 3, 5], 5)
        rest = await both.tree.find_leaves(LeafFilter(subject="key/k0", limit=3, after=5))
        assert (found(rest), rest.read_to) == ([7, 9], None)
        backward = await both.tree.find_leaves(LeafFilter(subject="key/k1", limit=2, newest_first=True))
        assert (found(backward), backward.read_to) == ([10, 8], 8)
        rest = await both.tree.find_leaves(LeafFilter(subject="key/k1", limit=9, newest_first=True, after=8))
        assert (found(rest), rest.read_to) == ([6, 4, 2], None)
        assert found(await both.tree.find_leaves(LeafFilter(after=7))) == [8, 9, 10]
        assert found(await both.tree.find_leaves(LeafFilter(subject="key/none"))) == []

    @pytest.mark.parametrize("first", ["oldest", "newest"])
    async def test_a_rare_kind_is_found_without_reading_everything_at_once(self, both: LogAndTree, first: str) -> None:
        """One reading looks at a bounded number of entries, and says how far it came."""
        kinds = [EntryKind.LEASE_GRANTED] * 20
        kinds[9] = EntryKind.KEY_UPDATED
        await both.log.append([entry(kind) for kind in kinds])
        usual: dict[str, Any] = {
            "subject": "key/k",
            "kinds": [2],
            "newest_first": first == "newest",
            "limit": 5,
            "scan_max": 6,
        }
        after, indexes, rounds = 0, [], 0
        while True:
            page = await both.tree.find_leaves(LeafFilter(after=after, **usual))
            indexes += found(page)
            rounds += 1
            if page.read_to is None:
                break
            after = page.read_to
        assert (indexes, rounds) == ([10], 4)

    async def test_what_owners_are_told_of_is_read_apart(self, both: LogAndTree) -> None:
        """Every kind that owners are told of, and none that they are not."""
        kinds = list(EntryKind)
        await both.log.append([entry(kind) for kind in kinds])
        told = await both.tree.read_told(0, up_to=len(kinds), limit=100)
        assert {row.kind for row in told} == {int(kind) for kind in TOLD_KINDS}
        assert [kinds[row.audit_index - 1] for row in told] == [row.kind for row in told]
        assert await both.tree.read_told(told[0].audit_index, up_to=told[2].audit_index, limit=100) == told[1:3]
        assert await both.tree.read_told(0, up_to=100, limit=2) == told[:2]

    async def test_a_tile_is_stored_once(self, both: LogAndTree) -> None:
        """The same tile again is passed over; another in its place is told, and changes nothing."""
        tiles = [tile(0), tile(1), tile(0, level=1)]
        assert await both.tree.put_tiles(tiles) == []
        assert await both.tree.put_tiles([*tiles, tile(2)]) == []
        assert await both.tree.put_tiles([tile(1, fill=7), tile(3)]) == [TileId(0, 1)]
        asked = [TileId(0, position) for position in range(5)] + [TileId(1, 0)]
        stored = await both.tree.read_tiles(asked)
        assert {each: hashes[0] for each, hashes in stored.items()} == dict.fromkeys(set(asked) - {TileId(0, 4)}, 1)
        assert all(len(hashes) == TILE_BYTES for hashes in stored.values())
        assert await both.tree.read_tiles([]) == {}

    async def test_the_edge_above_is_made_of_roots(self, both: LogAndTree) -> None:
        """The hashes of a tile that is not full are the roots of the full ones below it, in order."""
        tiles = [tile(position) for position in (0, 1, 2, 255, 256, 257)]
        await both.tree.put_tiles(tiles[::-1])
        assert await both.tree.read_edge(TileId(1, 1)) == [tiles[4].root, tiles[5].root]
        assert (await both.tree.read_edge(TileId(1, 0)))[:3] == [each.root for each in tiles[:3]]
        assert await both.tree.read_edge(TileId(2, 0)) == []

    async def test_the_first_checkpoint_of_a_size_stays(self, both: LogAndTree) -> None:
        """Another one of the same size gets the first one back."""
        assert await both.tree.put_checkpoint(0, "empty") == "empty"
        assert await both.tree.put_checkpoint(5, "first") == "first"
        assert await both.tree.put_checkpoint(5, "second") == "first"
        state = await both.tree.state()
        assert (state.size, state.note) == (5, "first")
        assert timedelta() <= state.age < timedelta(minutes=1)

    async def test_the_newest_checkpoint_is_never_forgotten(self, both: LogAndTree) -> None:
        """Older ones are, once they are old enough."""
        for size in (1, 2, 3):
            await both.tree.put_checkpoint(size, str(size))
        await both.tree.forget_checkpoints(timedelta(hours=1))
        assert await both.tree.put_checkpoint(1, "again") == "1"
        await both.tree.forget_checkpoints(timedelta(seconds=-1))
        assert await both.tree.put_checkpoint(3, "again") == "3"
        assert await both.tree.put_checkpoint(1, "again") == "again"

    async def test_what_a_growing_tree_fills_comes_back(self, both: LogAndTree) -> None:
        """Tiles and edge of a log of 600 entries give the tree of its leaves."""
        await both.log.append([entry() for _ in range(600)])
        hashes = [row.leaf_hash for row in await both.tree.read_leaves(0, up_to=600, limit=600)]
        tree = GrowingTree()
        assert await both.tree.put_tiles(tree.extend(hashes)) == []
        edge = {each: await both.tree.read_edge(each) for each in (TileId(0, 2), TileId(1, 0))}
        assert GrowingTree(600, edge).root() == tree.root()
        assert await both.tree.read_tiles([TileId(0, 0)]) == {TileId(0, 0): b"".join(hashes[:256])}
