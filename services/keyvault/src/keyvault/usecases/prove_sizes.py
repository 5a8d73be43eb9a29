"""GetCheckpoint, GetInclusionProof and GetConsistencyProof: what anybody who holds a leaf or a checkpoint asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyvault.domain.checkpoints import verifier_keys
from keyvault.domain.errors import AuditEntryNotFoundError
from keyvault.domain.new_keys import refused

if TYPE_CHECKING:
    from keyvault.domain.checkpoints import SignedCheckpoint
    from keyvault.ports import AuditTree, KeyringSource
    from keyvault.usecases.integrate_log import IntegrateLog
    from keyvault.usecases.prove_log import ProveLog
    from transparency.checkpoints import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class InclusionProof:
    """That a leaf stands in the tree of a size."""

    leaf_hash: bytes
    proof: Sequence[bytes]
    size: int
    root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyProof:
    """That the tree of a size continues an older one."""

    proof: Sequence[bytes]
    size: int
    root: bytes


class ProveSizes:
    """Checkpoints and proofs for any size that the log has had."""

    def __init__(self, tree: AuditTree, *, integrate: IntegrateLog, prove: ProveLog, keyring: KeyringSource) -> None:
        """Prove what is in `tree`."""
        self._tree = tree
        self._integrate = integrate
        self._prove = prove
        self._keyring = keyring

    async def checkpoint(self, covering_index: int) -> tuple[SignedCheckpoint, list[str]]:
        """Return a checkpoint that covers an index, or the newest for 0, and the keys that sign checkpoints.

        Raises:
            InvalidArgumentError: the log has no such index.
            AuditLogCorruptError: the log could not be signed that far.
        """
        signed = await self._covering(covering_index, "covering_index")
        return signed, verifier_keys(self._keyring.current())

    async def inclusion(self, audit_index: int, tree_size: int) -> InclusionProof:
        """Return the proof of an entry in the tree of a size, or of the newest checkpoint for 0.

        Raises:
            InvalidArgumentError: the log has no such size, or the entry came after it.
            AuditEntryNotFoundError: the log has no such entry.
            AuditLogCorruptError: the tree does not lead to what was signed.
        """
        if audit_index < 1:
            raise refused("audit_index", "REQUIRED", "Send the index of an entry; they count from 1.")
        if tree_size and tree_size < audit_index:
            raise refused("tree_size", "OUT_OF_RANGE", "Send a size that is not less than audit_index, or 0.")
        if audit_index > (await self._tree.state()).head:
            raise AuditEntryNotFoundError("the log has no such entry", audit_index=audit_index)
        newest = (await self._covering(max(audit_index, tree_size), "tree_size")).checkpoint
        tree = await self._checkpoint_at(tree_size or newest.size, newest)
        (proved,) = await self._prove.leaves([audit_index], tree)
        return InclusionProof(leaf_hash=proved.leaf_hash, proof=proved.proof, size=tree.size, root=tree.root)

    async def consistency(self, old_size: int, new_size: int) -> ConsistencyProof:
        """Return the proof between two sizes, the newer that of the newest checkpoint for 0.

        Raises:
            InvalidArgumentError: the log has had no such sizes.
            AuditLogCorruptError: the tree does not lead to what was signed.
        """
        if old_size < 1:
            raise refused("old_size", "REQUIRED", "Send the size of the older tree; the empty one needs no proof.")
        if new_size and new_size < old_size:
            raise refused("new_size", "OUT_OF_RANGE", "Send a size that is not less than old_size, or 0.")
        newest = (await self._covering(max(old_size, new_size), "new_size" if new_size else "old_size")).checkpoint
        new = await self._checkpoint_at(new_size or newest.size, newest)
        return ConsistencyProof(proof=await self._prove.consistency(old_size, new), size=new.size, root=new.root)

    async def _covering(self, audit_index: int, field: str) -> SignedCheckpoint:
        if audit_index < 0:
            raise refused(field, "OUT_OF_RANGE", "Send 0 or more.")
        if audit_index == 0:
            return await self._integrate.newest()
        if audit_index > self._integrate.newest_size and audit_index > (await self._tree.state()).head:
            raise refused(field, "OUT_OF_RANGE", "The log is not that long.")
        return await self._integrate.covering(audit_index)

    async def _checkpoint_at(self, size: int, newest: Checkpoint) -> Checkpoint:
        """Return the tree of `size` as the newest checkpoint proves it; nobody signed this very size."""
        return type(newest)(newest.origin, size, await self._prove.root(size, newest))
