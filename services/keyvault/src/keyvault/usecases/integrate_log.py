"""Integrates the audit log into its tree: checks every new leaf, hashes it, and signs a checkpoint over all of them.

This happens after the commit of the entries, so an append never waits for it. Everything that is written follows from
the log alone: whichever replica comes first writes it, another one would write the same, and a process that dies
between two writes leaves nothing that is wrong. So no lock is needed in the database, and none is held.

A leaf that this service did not write is never signed over, and neither is anything after it: the checkpoint before it
stays the newest until an operator has looked. Leases go on meanwhile (docs/adr/0007 says why).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from keyvault.domain.checkpoints import SignedCheckpoint, open_own_checkpoint, sign_checkpoint
from keyvault.domain.errors import AuditLogCorruptError
from keyvault.ports import StoredLeaf
from servicekit.errors import UnavailableError
from transparency.errors import CheckpointInvalidError
from transparency.tiles import TILE_WIDTH, GrowingTree, TileId, edge_tiles

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from datetime import timedelta

    from keyvault.ports import AuditTree, KeyringSource, TreeState
    from keyvault.usecases.check_leaves import CheckLeaves
    from keyvault.usecases.prove_log import ProveLog
    from keyvault.usecases.report_corruption import ReportCorruption
    from transparency.tiles import FullTile

READ_MAX: Final = 256
"""Leaves that are read by one statement: a tile."""

SLICE: Final = 64
"""Leaves that are checked and hashed before others get their turn: about half a millisecond."""

SIGN_EVERY: Final = 65_536
"""Entries after which a checkpoint is signed on the way, so that a process that dies loses no more work than that."""

_ABSENT: Final = StoredLeaf(0, 0, "", b"", b"")


class IntegrateLog:
    """The integration of one process. Concurrent callers share one pass."""

    def __init__(
        self,
        tree: AuditTree,
        *,
        check: CheckLeaves,
        prove: ProveLog,
        keyring: KeyringSource,
        report: ReportCorruption,
    ) -> None:
        """Integrate what `check` lets pass into `tree`."""
        self._store = tree
        self._check = check
        self._prove = prove
        self._keyring = keyring
        self._report = report
        self._passing = asyncio.Lock()
        self._newest: SignedCheckpoint | None = None
        self._tree = GrowingTree()
        self._found: tuple[object, object] | None = None
        self.uncovered = 0

    @property
    def newest_size(self) -> int:
        """Return how many entries the newest checkpoint that this process has seen covers."""
        return 0 if self._newest is None else self._newest.size

    @property
    def is_corrupt(self) -> bool:
        """Return whether the last pass found what it would not sign over."""
        return self._found is not None

    async def newest(self) -> SignedCheckpoint:
        """Return the newest checkpoint, made now if none was made yet.

        Raises:
            AuditLogCorruptError: what is stored is not what was signed.
            UnavailableError: the store is away.
        """
        async with self._passing:
            state = await self._store.state()
            return await self._watched(state, self._resume(state) if state.note else self._integrate(state))

    async def covering(self, audit_index: int) -> SignedCheckpoint:
        """Return a checkpoint that covers `audit_index`, which is in the log; made now if need be.

        Raises:
            AuditLogCorruptError: an entry up to it is not what this service wrote, or the tree is not what was signed.
            UnavailableError: the store is away.
        """
        if self._newest is not None and self._newest.size >= audit_index:
            return self._newest
        async with self._passing:
            # Whoever was before this caller may have come far enough.
            if self._newest is not None and self._newest.size >= audit_index:
                return self._newest
            state = await self._store.state()
            newest = await self._watched(state, self._integrate(state))
        if newest.size < audit_index:
            raise AuditLogCorruptError("the log lost its end", finding="TRUNCATED", audit_index=newest.size + 1)
        return newest

    async def if_due(self, interval: timedelta) -> None:
        """Integrate what there is, unless another replica did within `interval`. Raises like `covering`."""
        async with self._passing:
            state = await self._store.state()
            self.uncovered = state.head - state.size
            is_due = not state.note or (state.age >= interval and not state.size == state.head == state.last_entry)
            await self._watched(state, self._integrate(state) if is_due else self._resume(state))

    async def _watched(self, state: TreeState, work: Awaitable[SignedCheckpoint]) -> SignedCheckpoint:
        """Return what `work` does; what it finds wrong is reported once, until something else is, or nothing."""
        try:
            newest = await work
        except AuditLogCorruptError as error:
            found = (error.facts.get("finding"), error.facts.get("audit_index"))
            if found != self._found:
                with contextlib.suppress(UnavailableError):
                    await self._report(f"audit_entries/{found[1]}", error)
                self._found = found
            raise
        if newest.size >= state.head:
            self._found = None
        return newest

    async def _resume(self, state: TreeState) -> SignedCheckpoint:
        """Take the newest stored checkpoint for what it says, once it is proved, and stand where it stands."""
        if self._newest is not None and (state.size, state.note) == (self._newest.size, self._newest.note):
            return self._newest
        if self._newest is not None and state.size < self._newest.size:
            message = "the log was rolled back behind a checkpoint that was signed"
            raise AuditLogCorruptError(message, finding="TRUNCATED", audit_index=state.size + 1)
        signed = await self._opened(state.note)
        if signed.size != state.size:
            raise _forked("a checkpoint stands at another size than it says", state.size)
        self._tree = await self._tree_at(signed)
        self._newest = signed
        return signed

    async def _opened(self, note: str) -> SignedCheckpoint:
        try:
            return open_own_checkpoint(self._keyring.current(), note)
        except CheckpointInvalidError:
            # Another replica signed with a key that this one has not read yet.
            ring = await self._keyring.reload()
        try:
            return open_own_checkpoint(ring, note)
        except CheckpointInvalidError:
            raise _forked("a stored checkpoint was not signed by this service", self.newest_size) from None

    async def _tree_at(self, signed: SignedCheckpoint) -> GrowingTree:
        edge = {}
        for tile_id in edge_tiles(signed.size):
            edge[tile_id] = (await self._store.read_edge(tile_id))[: tile_id.width_at(signed.size)]
        try:
            tree = GrowingTree(signed.size, edge)
        except ValueError:
            raise _forked("the edge of the tree is not complete", signed.size) from None
        if tree.root() != signed.checkpoint.root:
            raise _forked("the tree does not have the root that was signed", signed.size)
        if self._newest is not None:
            await self._prove.ensure_continued(self._newest.checkpoint, signed.checkpoint)
        self._check.hold(edge.get(TileId(0, signed.size // TILE_WIDTH), ()))
        return tree

    async def _integrate(self, state: TreeState) -> SignedCheckpoint:
        if state.note or self._newest is not None:
            await self._resume(state)
        if state.last_entry > state.head:
            message = "an entry stands behind the head of the log"
            raise AuditLogCorruptError(message, finding="LEAF_FORGED", audit_index=state.head + 1)
        tree, added = self._tree.copy(), list[bytes]()
        seen: set[bytes] = set()
        while tree.size < state.head:
            await self._extend(tree, min(state.head, tree.size + READ_MAX), seen=seen, added=added)
            if len(added) >= SIGN_EVERY:
                await self._sign(tree, added)
                tree, added = tree.copy(), []
                seen.clear()
        if added or self._newest is None:
            return await self._sign(tree, added)
        return self._newest

    async def _extend(self, tree: GrowingTree, up_to: int, *, seen: set[bytes], added: list[bytes]) -> None:
        rows = await self._in_order(tree.size, up_to)
        filled: list[FullTile] = []
        for start in range(0, len(rows), SLICE):
            hashes = await self._check(rows[start : start + SLICE], first_index=tree.size + 1, seen=seen)
            filled += tree.extend(hashes)
            added += hashes
            await asyncio.sleep(0)
        if filled and (other := await self._store.put_tiles(filled)):
            raise _forked("a tile of the tree is stored with other hashes", other[0].position)

    async def _in_order(self, after: int, up_to: int) -> Sequence[StoredLeaf]:
        """Return a row for each index, an empty one where there is none."""
        rows = await self._store.read_leaves(after, up_to=up_to, limit=up_to - after)
        if len(rows) == up_to - after:
            return rows
        by_index = {row.audit_index: row for row in rows}
        return [by_index.get(audit_index, _ABSENT) for audit_index in range(after + 1, up_to + 1)]

    async def _sign(self, tree: GrowingTree, added: Sequence[bytes]) -> SignedCheckpoint:
        root = tree.root()
        signed = sign_checkpoint(self._keyring.current(), tree.size, root)
        note = await self._store.put_checkpoint(tree.size, signed.note)
        if note != signed.note:
            # Another replica was first; it may sign with another version of the key, but never another root.
            signed = await self._opened(note)
            if (signed.size, signed.checkpoint.root) != (tree.size, root):
                raise _forked("two trees of the same size were signed", tree.size)
        self._check.hold(added)
        self._newest, self._tree = signed, tree
        self.uncovered = 0
        return signed


def _forked(message: str, audit_index: int) -> AuditLogCorruptError:
    return AuditLogCorruptError(message, finding="TREE_FORKED", audit_index=audit_index)
