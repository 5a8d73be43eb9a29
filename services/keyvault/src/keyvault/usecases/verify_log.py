"""VerifyLog: the whole log, its tree and the authority rows that rest on it, in the database, a slice at a time.

It reads pages and holds no lock; between two slices others get their turn. What was appended after it began is left
for the next time. `domain/log_verification.py` says what is compared with what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain.checkpoints import open_own_checkpoint
from keyvault.domain.errors import AuditLogCorruptError, KekVersionUnavailableError
from keyvault.domain.log_verification import Finding, FindingKind, Findings, LogCheck, TreeVerifier
from keyvault.domain.new_keys import refused
from transparency.errors import CheckpointInvalidError
from transparency.merkle import HASH_BYTES
from transparency.tiles import TILE_WIDTH, GrowingTree, TileId, edge_tiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyvault.domain.leaf_seals import LeafSealer
    from keyvault.ports import AuditTree, KeyringSource, StoredLeaf, TreeState
    from keyvault.ports.verification import TreeRecords
    from keyvault.usecases.verify_authority import VerifyAuthority

PAGE: Final = TILE_WIDTH
SLICE: Final = 64
"""Leaves that are hashed before others get their turn: about half a millisecond."""
CHECKPOINTS_READ: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationStep:
    """How far the verification has come, and what it found since the step before."""

    entries_done: int
    rows_done: int
    entries: int
    findings: Sequence[Finding]
    is_done: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Signed:
    size: int
    root: bytes


class VerifyLog:
    """The verification; each call is one."""

    def __init__(
        self,
        tree: AuditTree,
        records: TreeRecords,
        *,
        sealer: LeafSealer,
        keyring: KeyringSource,
        authority: VerifyAuthority,
    ) -> None:
        """Read `tree` and `records`; check seals with `sealer`, and rows by `authority`."""
        self._store = tree
        self._records = records
        self._sealer = sealer
        self._keyring = keyring
        self._authority = authority

    async def __call__(
        self, first_index: int, pinned_note: str, checks: frozenset[LogCheck]
    ) -> AsyncIterator[VerificationStep]:
        """Verify from the tile of `first_index` on, 0 for all; the log must continue the pinned checkpoint, if any.

        Raises:
            InvalidArgumentError: the pinned checkpoint is not one of this log, or there is no such index.
            UnavailableError: the store is away.
        """
        # A key that this replica has not read yet must not be taken for no key at all.
        await self._keyring.reload()
        pinned = self._pinned(pinned_note)
        state = await self._store.state()
        if not 0 <= first_index <= max(state.head, 1):
            raise refused("first_index", "OUT_OF_RANGE", "Send the index of an entry, or 0 for all.")
        findings = Findings(checks)
        start = max(first_index - 1, 0) // TILE_WIDTH * TILE_WIDTH
        verifier = TreeVerifier(await self._tree_at(start), findings)
        reported = 0
        signed = self._signed(start, state, pinned, findings)
        following = await anext(signed, None)
        while verifier.size < state.head:
            up_to = min(state.head, verifier.size + PAGE, following.size if following else state.head)
            await self._take(verifier, findings, up_to)
            while following is not None and following.size == verifier.size:
                verifier.compare_root(following.size, following.root)
                following = await anext(signed, None)
            yield VerificationStep(
                entries_done=verifier.size,
                rows_done=0,
                entries=state.head,
                findings=findings.found[reported:],
            )
            reported = len(findings.found)
        _compare_end(findings, state, pinned)
        rows = 0
        async for rows in self._authority(findings):
            yield VerificationStep(
                entries_done=state.head, rows_done=rows, entries=state.head, findings=findings.found[reported:]
            )
            reported = len(findings.found)
        yield VerificationStep(
            entries_done=state.head,
            rows_done=rows,
            entries=state.head,
            findings=findings.found[reported:],
            is_done=True,
            note=state.note,
        )

    def _pinned(self, note: str) -> _Signed | None:
        if not note:
            return None
        try:
            pinned = open_own_checkpoint(self._keyring.current(), note)
        except CheckpointInvalidError as error:
            raise refused("pinned_checkpoint", "NOT_A_CHECKPOINT", f"Send a checkpoint of this log: {error}.") from None
        return _Signed(pinned.size, pinned.checkpoint.root)

    async def _tree_at(self, size: int) -> GrowingTree:
        edge = {}
        for tile_id in edge_tiles(size):
            edge[tile_id] = (await self._store.read_edge(tile_id))[: tile_id.width_at(size)]
        try:
            return GrowingTree(size, edge)
        except ValueError:
            message = "the tiles before the first index are not complete; verify from the start"
            raise AuditLogCorruptError(message, finding="TREE_FORKED", audit_index=size) from None

    async def _signed(
        self, after: int, state: TreeState, pinned: _Signed | None, findings: Findings
    ) -> AsyncIterator[_Signed]:
        """Yield every root that was signed for a tree up to the head, smaller ones first, and the pinned one."""
        kept = pinned if pinned is not None and after < pinned.size <= state.head else None
        seen = after
        while rows := await self._records.checkpoints(seen, CHECKPOINTS_READ):
            for size, note in rows:
                if size > state.head:
                    break
                if kept is not None and kept.size <= size:
                    yield kept
                    kept = None
                signed = self._opened(size, note, findings)
                if signed is not None:
                    yield signed
            seen = rows[-1][0]
            if seen > state.head:
                break
        if kept is not None:
            yield kept

    def _opened(self, size: int, note: str, findings: Findings) -> _Signed | None:
        try:
            signed = open_own_checkpoint(self._keyring.current(), note)
        except CheckpointInvalidError:
            said = "a stored checkpoint was not signed by a key of this service that can still be had"
        else:
            if signed.size == size:
                return _Signed(size, signed.checkpoint.root)
            said = "a stored checkpoint stands at another size than it says"
        finding = Finding(FindingKind.TREE_FORKED, size, said, "audit_checkpoints")
        findings.add(LogCheck.CHECKPOINTS, finding)
        return None

    async def _take(self, verifier: TreeVerifier, findings: Findings, up_to: int) -> None:
        after = verifier.size
        rows = await self._store.read_leaves(after, up_to=up_to, limit=up_to - after)
        by_index = {row.audit_index: row for row in rows}
        tile: bytes | None = None
        filled = []
        hashes: list[bytes] = []
        for audit_index in range(after + 1, up_to + 1):
            row = by_index.get(audit_index)
            if row is None:
                verifier.missing(audit_index)
                tile = await self._leaf_tile(audit_index) if tile is None else tile
                at = (audit_index - 1) % TILE_WIDTH * HASH_BYTES
                hashes.append(tile[at : at + HASH_BYTES] or bytes(HASH_BYTES))
            else:
                hashes.append(verifier.hash_of(audit_index, row.leaf, row.leaf_hash))
                self._check_seal(verifier, row)
            if len(hashes) == SLICE:
                filled += verifier.extend(hashes)
                hashes = []
                await asyncio.sleep(0)
        filled += verifier.extend(hashes)
        if filled and LogCheck.TILES in findings.checks:
            verifier.compare_tiles(filled, await self._records.tiles([each.tile_id for each in filled]))

    async def _leaf_tile(self, audit_index: int) -> bytes:
        tile_id = TileId(0, (audit_index - 1) // TILE_WIDTH)
        hashes, _ = (await self._records.tiles([tile_id])).get(tile_id, (b"", b""))
        return hashes

    def _check_seal(self, verifier: TreeVerifier, row: StoredLeaf) -> None:
        if not row.leaf:
            return
        try:
            self._sealer.check(row.leaf, kind=row.kind, subject=row.subject)
        except AuditLogCorruptError as error:
            verifier.forged(row.audit_index, FindingKind[str(error.facts["finding"])], str(error))
        except KekVersionUnavailableError:
            # A seal may outlive its key: the tree holds the leaf in place (docs/audit-log.md).
            return


def _compare_end(findings: Findings, state: TreeState, pinned: _Signed | None) -> None:
    """Compare where the log ends with where it said, and where it was signed to."""
    signed = max(state.size, pinned.size if pinned is not None else 0)
    if signed > state.head:
        said = f"the log ends at {state.head}, and a checkpoint was signed over {signed} entries"
        findings.add(LogCheck.END, Finding(FindingKind.TRUNCATED, state.head + 1, said))
    if state.last_entry > state.head:
        said = "an entry stands behind the head of the log"
        findings.add(LogCheck.END, Finding(FindingKind.LEAF_FORGED, state.head + 1, said))
    elif state.last_entry < state.head:
        said = f"the head says {state.head}, and the last entry is {state.last_entry}"
        findings.add(LogCheck.END, Finding(FindingKind.TRUNCATED, state.last_entry + 1, said))
