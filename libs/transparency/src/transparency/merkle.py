"""The Merkle tree of RFC 6962: hashes, roots, and the two proofs that anybody can check (RFC 9162, 2.1.3 and 2.1.4).

Leaves are counted from 0. A verifier trusts nothing that it is given but the root: whatever is malformed, too long, out
of range or simply wrong raises `ProofInvalidError`, and nothing else is ever raised.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from transparency.errors import ProofInvalidError

if TYPE_CHECKING:
    from collections.abc import Sequence

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256().digest()
"""Root of the tree without leaves."""

SIZE_MAX: Final = (1 << 63) - 1
"""No tree is larger: its size must fit into a signed 64-bit integer."""

PROOF_HASHES_MAX: Final = 2 * 63
"""No proof in a tree of SIZE_MAX leaves is longer, so a longer one is refused unread."""

_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(_LEAF + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node over its two children."""
    return hashlib.sha256(_NODE + left + right).digest()


def root_of(leaf_hashes: Sequence[bytes]) -> bytes:
    """Return the root of the tree over these leaves."""
    row = list(leaf_hashes)
    if not row:
        return EMPTY_ROOT
    # Hashing pairwise and carrying an odd last hash up is the definition's split at the largest power of two.
    while len(row) > 1:
        odd = row[-1:] if len(row) % 2 else []
        row = [node_hash(left, right) for left, right in zip(row[::2], row[1::2], strict=False)] + odd
    return row[0]


def verify_inclusion(*, leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf with this hash stands at `index` in the tree of `size` leaves with this root.

    Raises:
        ProofInvalidError: it does not, or the proof does not show it.
    """
    _check_hashes([leaf_hash, root], proof)
    if not 0 <= index < size <= SIZE_MAX:
        raise ProofInvalidError("the index must lie in the tree")
    computed = leaf_hash
    for sibling, is_left in zip(proof, _sides(index, size - 1, len(proof)), strict=True):
        computed = node_hash(sibling, computed) if is_left else node_hash(computed, sibling)
    if computed != root:
        raise ProofInvalidError("the proof does not lead to the root")


def verify_consistency(
    *, old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the tree of `new_size` leaves begins with all leaves of the tree of `old_size`, in their order.

    Raises:
        ProofInvalidError: it does not, or the proof does not show it.
    """
    _check_hashes([old_root, new_root], proof)
    if not 0 <= old_size <= new_size <= SIZE_MAX:
        raise ProofInvalidError("a tree only grows")
    if old_size in (0, new_size):
        _check_trivially_consistent(old_size, old_root, new_size, new_root, proof)
        return
    # A tree that is one full subtree is its own first node, which the proof then leaves out.
    path = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    if not path:
        raise ProofInvalidError("the proof is too short")
    position, last = old_size - 1, new_size - 1
    while position % 2:
        position >>= 1
        last >>= 1
    old_computed = new_computed = path[0]
    for sibling, is_left in zip(path[1:], _sides(position, last, len(path) - 1), strict=True):
        if is_left:
            old_computed = node_hash(sibling, old_computed)
            new_computed = node_hash(sibling, new_computed)
        else:
            new_computed = node_hash(new_computed, sibling)
    if (old_computed, new_computed) != (old_root, new_root):
        raise ProofInvalidError("the proof does not lead to both roots")


def _sides(position: int, last: int, length: int) -> list[bool]:
    """Return whether each hash of a proof stands left, on the way up from `position` in a row that ends at `last`.

    Raises:
        ProofInvalidError: the way has another length.
    """
    sides = []
    for _ in range(length):
        if last == 0:
            raise ProofInvalidError("the proof is too long")
        is_left = position % 2 == 1 or position == last
        while is_left and position % 2 == 0 and position:
            position >>= 1
            last >>= 1
        sides.append(is_left)
        position >>= 1
        last >>= 1
    if last:
        raise ProofInvalidError("the proof is too short")
    return sides


def _check_trivially_consistent(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check what needs no proof: the empty tree begins every tree, and a tree continues itself."""
    if proof:
        raise ProofInvalidError("the proof is too long")
    if (old_size == 0 and old_root != EMPTY_ROOT) or (new_size == 0 and new_root != EMPTY_ROOT):
        raise ProofInvalidError("a tree without leaves has one root only")
    if old_size == new_size and old_root != new_root:
        raise ProofInvalidError("one size cannot have two roots")


def _check_hashes(roots: Sequence[bytes], proof: Sequence[bytes]) -> None:
    if len(proof) > PROOF_HASHES_MAX:
        raise ProofInvalidError("the proof is longer than any")
    if any(len(each) != HASH_BYTES for each in (*roots, *proof)):
        raise ProofInvalidError("a hash has 32 bytes")
