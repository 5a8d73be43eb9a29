"""Tiles: a tree that grows in any steps has the root of its leaves, and its tiles prove every leaf."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transparency.merkle import leaf_hash, root_of, verify_consistency, verify_inclusion
from transparency.paths import Span, consistency_path, inclusion_path
from transparency.tiles import TILE_BYTES, FullTile, GrowingTree, TiledTree, TileId, edge_tiles, tiles_of

LEAVES = [leaf_hash(number.to_bytes(3, "big")) for number in range(66_000)]


def tiles_by_hand(size: int) -> dict[TileId, bytes]:
    """Return every tile of a tree, full or not, by the definition of tlog-tiles."""
    tiles = {}
    row, level = LEAVES[:size], 0
    while row:
        for at in range(0, len(row), 256):
            tiles[TileId(level, at // 256)] = b"".join(row[at : at + 256])
        row = [root_of(row[at : at + 256]) for at in range(0, len(row) - 255, 256)]
        level += 1
    return tiles


@given(steps=st.lists(st.integers(min_value=0, max_value=700), max_size=8))
@settings(max_examples=60, deadline=None)
def test_a_tree_that_grows_in_any_steps_is_the_tree_of_its_leaves(steps: list[int]) -> None:
    """Root, size, tiles and edge depend on the leaves, not on how they came."""
    tree = GrowingTree()
    filled: list[FullTile] = []
    for step in steps:
        filled += tree.extend(LEAVES[tree.size : tree.size + step])
        assert tree.root() == root_of(LEAVES[: tree.size])
        # Whoever starts anew from what is stored goes on with the same tree.
        by_hand = tiles_by_hand(tree.size)
        edge = {each: [by_hand[each][at : at + 32] for at in range(0, len(by_hand[each]), 32)]
                for each in edge_tiles(tree.size)}  # fmt: skip
        again = GrowingTree(tree.size, edge)
        assert (again.root(), again.size) == (tree.root(), tree.size)
        tree = again
    by_hand = tiles_by_hand(tree.size)
    assert {each.tile_id: each.hashes for each in filled} == {
        each: hashes for each, hashes in by_hand.items() if len(hashes) == TILE_BYTES
    }
    assert [
        each.tile_id
        for each in filled
        if each.root != root_of([each.hashes[at : at + 32] for at in range(0, TILE_BYTES, 32)])
    ] == []


@pytest.mark.parametrize("size", [1, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 66_000])
def test_tiles_prove_leaves_and_older_trees(size: int) -> None:
    """At every edge, with the tiles that are named for it and no others."""
    all_tiles = tiles_by_hand(size)
    root = root_of(LEAVES[:size])
    for index in sorted({0, 1, size // 3, size // 2, size - 2, size - 1} & set(range(size))):
        needed = tiles_of([*inclusion_path(index, size), Span(0, size), Span(index, index + 1)])
        tree = TiledTree({each: all_tiles[each] for each in needed})
        assert tree.root(size) == root
        proof = tree.inclusion_proof(index, size)
        verify_inclusion(leaf_hash=tree.leaf_hash(index), index=index, size=size, proof=proof, root=root)
        assert tree.leaf_hash(index) == LEAVES[index]
        path = consistency_path(index, size)
        grown = TiledTree({each: all_tiles[each] for each in tiles_of(path)}).consistency_proof(index, size)
        verify_consistency(old_size=index, old_root=root_of(LEAVES[:index]), new_size=size, new_root=root, proof=grown)
        assert len(needed) <= 12


def test_an_older_size_is_proved_from_later_tiles() -> None:
    """Tiles of a tree that grew on tell the proofs of what it was."""
    tree = TiledTree(tiles_by_hand(66_000))
    for size in (1, 200, 256, 300, 65_536, 65_537):
        root = root_of(LEAVES[:size])
        assert tree.root(size) == root
        proof = tree.inclusion_proof(size - 1, size)
        verify_inclusion(leaf_hash=LEAVES[size - 1], index=size - 1, size=size, proof=proof, root=root)


def test_a_copy_grows_apart() -> None:
    """What is added to a copy is not in the tree that it was copied from."""
    tree = GrowingTree()
    tree.extend(LEAVES[:300])
    copied = tree.copy()
    copied.extend(LEAVES[300:900])
    assert (tree.root(), copied.root()) == (root_of(LEAVES[:300]), root_of(LEAVES[:900]))


def test_an_edge_that_is_not_of_the_size_is_refused() -> None:
    """A hash that is missing, or too much, is told at once."""
    for size, edge in ((1, {}), (2, {TileId(0, 0): LEAVES[:1]}), (256, {}), (256, {TileId(1, 0): LEAVES[:2]})):
        with pytest.raises(ValueError, match="edge"):
            GrowingTree(size, edge)


def test_a_missing_tile_is_told() -> None:
    """A proof is never made of fewer hashes than it needs."""
    tree = TiledTree({TileId(0, 0): b"".join(LEAVES[:100])})
    for ask in (lambda: tree.root(101), lambda: tree.inclusion_proof(0, 300), lambda: tree.leaf_hash(100)):
        with pytest.raises(KeyError):
            ask()
    for index, size in ((-1, 5), (5, 5), (0, 0)):
        with pytest.raises(ValueError, match="index"):
            tree.inclusion_proof(index, size)
    with pytest.raises(ValueError, match="grows"):
        tree.consistency_proof(3, 2)
