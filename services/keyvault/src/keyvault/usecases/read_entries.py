"""What is answered of the log: entries that were read back, checked against the tree, and decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyvault.domain.audit_log import AuditEntry, decode_leaf, leaf_hash
from keyvault.domain.canonical import CanonicalFormError
from keyvault.domain.errors import AuditLogCorruptError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyvault.ports import StoredLeaf
    from keyvault.usecases.prove_log import ProvedLeaf, ProveLog
    from transparency.checkpoints import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedEntry:
    """An entry with its proof."""

    audit_index: int
    entry: AuditEntry
    leaf: bytes
    leaf_hash: bytes
    proof: tuple[bytes, ...]


async def prove_entries(prove: ProveLog, rows: Sequence[StoredLeaf], checkpoint: Checkpoint) -> list[ProvedEntry]:
    """Return entries that `checkpoint` covers, with proofs that lead to it.

    Raises:
        AuditLogCorruptError: an entry is not the one in the tree, or a column says something else than its leaf.
    """
    proved = await prove.leaves([row.audit_index for row in rows], checkpoint)
    return [_proved(row, leaf) for row, leaf in zip(rows, proved, strict=True)]


def read_entry(row: StoredLeaf) -> AuditEntry:
    """Return the entry in a row.

    Raises:
        AuditLogCorruptError: it cannot be read, or a column that it is found by says something else.
    """
    try:
        entry = decode_leaf(row.leaf)
    except CanonicalFormError:
        raise _edited("an entry of the audit log cannot be read", "LEAF_EDITED", row) from None
    if (entry.kind, entry.subject) != (row.kind, row.subject):
        # Whoever edits a column shows an owner what is another owner's.
        raise _edited("a column of the audit log says something else than its leaf", "COLUMN_DISAGREES", row)
    return entry


def _proved(row: StoredLeaf, proved: ProvedLeaf) -> ProvedEntry:
    if row.leaf_hash != proved.leaf_hash or leaf_hash(row.leaf) != proved.leaf_hash:
        raise _edited("an entry of the audit log is not the one that was signed", "LEAF_EDITED", row)
    return ProvedEntry(
        audit_index=row.audit_index,
        entry=read_entry(row),
        leaf=row.leaf,
        leaf_hash=proved.leaf_hash,
        proof=proved.proof,
    )


def _edited(message: str, finding: str, row: StoredLeaf) -> AuditLogCorruptError:
    return AuditLogCorruptError(message, finding=finding, audit_index=row.audit_index)
