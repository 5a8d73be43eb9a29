"""Proves entries and sizes of the audit log from its tiles; nothing is answered that does not lead to a signed root."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain.errors import AuditLogCorruptError
from transparency.errors import ProofInvalidError
from transparency.merkle import verify_consistency, verify_inclusion
from transparency.paths import Span, consistency_path, inclusion_path
from transparency.tiles import TiledTree, tiles_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keyvault.ports import AuditTree
    from transparency.checkpoints import Checkpoint

PROVED_AT_ONCE: Final = 16
"""Entries whose tiles are read and hashed before others get their turn: a few milliseconds."""


@dataclass(frozen=True, slots=True)
class ProvedLeaf:
    """The hash that the tree holds for an entry, and the proof that it does."""

    leaf_hash: bytes
    proof: tuple[bytes, ...]


class ProveLog:
    """Makes proofs; an index counts from 1, as everywhere outside the tree."""

    def __init__(self, tree: AuditTree) -> None:
        """Read `tree`."""
        self._store = tree

    async def leaves(self, indexes: Sequence[int], checkpoint: Checkpoint) -> list[ProvedLeaf]:
        """Return the proofs of entries that `checkpoint` covers.

        Raises:
            AuditLogCorruptError: what is stored does not lead to the checkpoint's root.
            UnavailableError: the store is away.
        """
        proved: list[ProvedLeaf] = []
        for start in range(0, len(indexes), PROVED_AT_ONCE):
            part = indexes[start : start + PROVED_AT_ONCE]
            spans = [Span(index - 1, index) for index in part]
            spans += [span for index in part for span in inclusion_path(index - 1, checkpoint.size)]
            tree = await self._tree(spans)
            proved += [_proved_leaf(tree, index, checkpoint) for index in part]
            await asyncio.sleep(0)
        return proved

    async def consistency(self, old_size: int, new: Checkpoint) -> list[bytes]:
        """Return the proof that `new` continues the tree of an older size; `new` is signed. Raises like `leaves`."""
        proof, _ = await self._grown(old_size, new)
        return proof

    async def root(self, size: int, newest: Checkpoint) -> bytes:
        """Return the root of the tree of `size`, which `newest`, that is signed, continues. Raises like `leaves`."""
        if size == newest.size:
            return newest.root
        _, root = await self._grown(size, newest)
        return root

    async def ensure_continued(self, old: Checkpoint, new: Checkpoint) -> None:
        """Check that one signed checkpoint continues another. Raises like `leaves`."""
        if await self.root(old.size, new) != old.root:
            raise AuditLogCorruptError(
                "the log does not continue what was signed before", finding="TREE_FORKED", audit_index=old.size
            )

    async def _grown(self, old_size: int, new: Checkpoint) -> tuple[list[bytes], bytes]:
        path = consistency_path(old_size, new.size)
        tree = await self._tree([*path, Span(0, old_size)])
        try:
            proof, root = tree.consistency_proof(old_size, new.size), tree.root(old_size)
            verify_consistency(old_size=old_size, old_root=root, new_size=new.size, new_root=new.root, proof=proof)
        except (KeyError, ProofInvalidError):
            raise _disagrees(old_size) from None
        return proof, root

    async def _tree(self, spans: Iterable[Span]) -> TiledTree:
        """Return the tree with the tiles that these parts of it are hashed from."""
        needed = tiles_of(spans)
        tiles = dict(await self._store.read_tiles(needed)) if needed else {}
        for tile_id in needed - tiles.keys():
            tiles[tile_id] = b"".join(await self._store.read_edge(tile_id))
        return TiledTree(tiles)


def _proved_leaf(tree: TiledTree, index: int, checkpoint: Checkpoint) -> ProvedLeaf:
    try:
        proof = tree.inclusion_proof(index - 1, checkpoint.size)
        found = tree.leaf_hash(index - 1)
        verify_inclusion(leaf_hash=found, index=index - 1, size=checkpoint.size, proof=proof, root=checkpoint.root)
    except (KeyError, ProofInvalidError):
        raise _disagrees(index) from None
    return ProvedLeaf(found, tuple(proof))


def _disagrees(audit_index: int) -> AuditLogCorruptError:
    return AuditLogCorruptError(
        "the tree of the audit log does not lead to what was signed; an operator must look at it",
        finding="TREE_FORKED",
        audit_index=audit_index,
    )
