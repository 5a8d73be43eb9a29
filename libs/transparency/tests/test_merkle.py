"""The tree of RFC 6962: published vectors, and every proof of every small tree, whole and broken."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transparency.errors import ProofInvalidError
from transparency.merkle import (
    EMPTY_ROOT,
    PROOF_HASHES_MAX,
    SIZE_MAX,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from transparency.tiles import TiledTree, TileId

if TYPE_CHECKING:
    from collections.abc import Callable

# The test vectors of the Certificate Transparency project, which every implementation of RFC 6962 is checked against.
LEAVES = [bytes.fromhex(each) for each in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): INCLUSION[0, 8],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
HASHES = [leaf_hash(each) for each in LEAVES]
MANY = [leaf_hash(number.to_bytes(2, "big")) for number in range(300)]


def hashes(proof: list[str]) -> list[bytes]:
    """Return a proof as bytes."""
    return [bytes.fromhex(each) for each in proof]


def tree(leaf_hashes: list[bytes]) -> TiledTree:
    """Return a tree that can prove itself, of at most two tiles."""
    tiles = {TileId(0, at): b"".join(leaf_hashes[256 * at : 256 * (at + 1)]) for at in range(2)}
    return TiledTree(tiles | {TileId(1, 0): root_of(leaf_hashes[:256])})


def by_definition(leaf_hashes: list[bytes]) -> bytes:
    """Return the root as RFC 6962 defines it."""
    if len(leaf_hashes) < 2:
        return leaf_hashes[0] if leaf_hashes else hashlib.sha256().digest()
    split = 1
    while split * 2 < len(leaf_hashes):
        split *= 2
    return node_hash(by_definition(leaf_hashes[:split]), by_definition(leaf_hashes[split:]))


@pytest.mark.parametrize("size", range(9))
def test_roots_are_the_published_ones(size: int) -> None:
    """The roots over the first leaves of the common vectors."""
    assert root_of(HASHES[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_published_inclusion_proofs_verify_and_are_made(index: int, size: int) -> None:
    """Inclusion proofs of the common vectors."""
    proof = hashes(INCLUSION[index, size])
    root = bytes.fromhex(ROOTS[size])
    verify_inclusion(leaf_hash=HASHES[index], index=index, size=size, proof=proof, root=root)
    assert tree(HASHES).inclusion_proof(index, size) == proof


@pytest.mark.parametrize(("old", "new"), CONSISTENCY)
def test_published_consistency_proofs_verify_and_are_made(old: int, new: int) -> None:
    """Consistency proofs of the common vectors."""
    proof = hashes(CONSISTENCY[old, new])
    roots = (bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[new]))
    verify_consistency(old_size=old, old_root=roots[0], new_size=new, new_root=roots[1], proof=proof)
    assert tree(HASHES).consistency_proof(old, new) == proof


def test_a_root_is_what_the_rfc_defines() -> None:
    """Hashing row by row gives what the recursive definition gives, for every size."""
    for size in range(len(MANY) + 1):
        assert root_of(MANY[:size]) == by_definition(MANY[:size])


def test_every_inclusion_proof_of_every_size_verifies() -> None:
    """Each leaf of each tree."""
    whole = tree(MANY)
    for size in [*range(1, 71), 127, 128, 129, 255, 256, 257, 300]:
        root = root_of(MANY[:size])
        for index in range(size):
            proof = whole.inclusion_proof(index, size)
            verify_inclusion(leaf_hash=MANY[index], index=index, size=size, proof=proof, root=root)


def test_every_consistency_proof_between_all_sizes_verifies() -> None:
    """Each pair of trees."""
    whole = tree(MANY)
    roots = [root_of(MANY[:size]) for size in range(len(MANY) + 1)]
    for new in [*range(71), 255, 256, 257, 300]:
        for old in range(new + 1):
            proof = whole.consistency_proof(old, new)
            verify_consistency(old_size=old, old_root=roots[old], new_size=new, new_root=roots[new], proof=proof)


def refused(check: Callable[[], None]) -> bool:
    """Return whether a check refuses, by the one error that it may raise."""
    try:
        check()
    except ProofInvalidError:
        return True
    return False


def broken_proofs(proof: list[bytes]) -> list[list[bytes]]:
    """Return a proof with a bit flipped in each hash, with each hash left out, doubled, and with one more at an end."""
    flipped = [[*proof[:at], bytes([proof[at][0] ^ 1]) + proof[at][1:], *proof[at + 1 :]] for at in range(len(proof))]
    dropped = [[*proof[:at], *proof[at + 1 :]] for at in range(len(proof))]
    doubled = [[*proof[: at + 1], *proof[at:]] for at in range(len(proof))]
    cut = [[*proof[:at], proof[at][:-1], *proof[at + 1 :]] for at in range(len(proof))]
    return [*flipped, *dropped, *doubled, *cut, [*proof, bytes(32)], [bytes(32), *proof], proof[::-1]]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 33])
def test_every_broken_inclusion_proof_is_refused(size: int) -> None:
    """Another leaf, place, size, root, or a proof with anything changed, does not verify."""
    whole, root = tree(MANY), root_of(MANY[:size])
    for index in range(size):
        proof = whole.inclusion_proof(index, size)
        usual: dict[str, Any] = {"leaf_hash": MANY[index], "index": index, "size": size, "proof": proof, "root": root}
        changes: list[dict[str, Any]] = [{"proof": each} for each in broken_proofs(proof) if each != proof]
        changes += [{"index": other} for other in range(-1, size + 2) if other != index]
        changes += [{"leaf_hash": MANY[299]}, {"root": bytes(32)}, {"leaf_hash": b""}, {"root": b""}]
        for change in changes:
            asked = usual | change
            assert refused(functools.partial(verify_inclusion, **asked)), (index, change)


def test_an_inclusion_proof_holds_for_sizes_of_its_shape_only_with_their_root() -> None:
    """A leaf has the same path in some trees of other sizes; then it is the root that differs."""
    whole = tree(MANY)
    for size in range(1, 40):
        proof = whole.inclusion_proof(0, size)
        for other in range(1, 40):
            check = functools.partial(verify_inclusion, leaf_hash=MANY[0], index=0, size=other, proof=proof)
            is_refused = refused(functools.partial(check, root=root_of(MANY[:other])))
            assert is_refused == (other != size)


@pytest.mark.parametrize("new", [1, 2, 3, 4, 5, 7, 8, 9, 31, 33])
def test_every_broken_consistency_proof_is_refused(new: int) -> None:
    """Another root on either side, or a proof with anything changed, does not verify."""
    whole = tree(MANY)
    for old in range(new + 1):
        proof = whole.consistency_proof(old, new)
        roots = {"old_root": root_of(MANY[:old]), "new_root": root_of(MANY[:new])}
        usual: dict[str, Any] = {"old_size": old, "new_size": new, "proof": proof, **roots}
        changes: list[dict[str, Any]] = [{"proof": each} for each in broken_proofs(proof) if each != proof]
        changes += [{"old_root": bytes(32)}, {"old_root": b""}, {"new_root": b""}]
        changes += [{"new_root": bytes(32)}] if old else []
        changes += [{"old_size": other} for other in range(-1, new + 2) if other != old and (other or old == new)]
        for change in changes:
            asked = usual | change
            assert refused(functools.partial(verify_consistency, **asked)), (old, change)


def test_a_fork_has_no_consistency_proof() -> None:
    """Trees that differ in one old leaf are refused with the proof of either."""
    forked = [*MANY[:10], leaf_hash(b"forked"), *MANY[11:]]
    for proof in (tree(MANY).consistency_proof(20, 50), tree(forked).consistency_proof(20, 50)):
        with pytest.raises(ProofInvalidError):
            verify_consistency(
                old_size=20, old_root=root_of(MANY[:20]), new_size=50, new_root=root_of(forked[:50]), proof=proof
            )


def test_a_proof_longer_than_any_is_refused_unread() -> None:
    """There is a limit on what a verifier looks at."""
    proof = [bytes(32)] * (PROOF_HASHES_MAX + 1)
    with pytest.raises(ProofInvalidError, match="longer than any"):
        verify_inclusion(leaf_hash=bytes(32), index=0, size=SIZE_MAX, proof=proof, root=bytes(32))
    with pytest.raises(ProofInvalidError):
        verify_inclusion(leaf_hash=bytes(32), index=0, size=SIZE_MAX + 1, proof=[], root=bytes(32))


SIZES = st.integers(min_value=-(1 << 65), max_value=1 << 65)
ANY_PROOF = st.lists(st.binary(max_size=40) | st.binary(min_size=32, max_size=32), max_size=140)
ANY_HASH = st.binary(max_size=40) | st.binary(min_size=32, max_size=32)


@given(leaf=ANY_HASH, index=SIZES, size=SIZES, proof=ANY_PROOF, root=ANY_HASH)
@settings(max_examples=300, deadline=None)
def test_nothing_but_a_refusal_comes_of_an_invented_inclusion(
    leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes
) -> None:
    """Any bytes and any numbers are refused without a crash."""
    is_leaf_the_tree = (index, size, proof) == (0, 1, []) and leaf == root and len(root) == 32
    assert is_leaf_the_tree or refused(
        lambda: verify_inclusion(leaf_hash=leaf, index=index, size=size, proof=proof, root=root)
    )


@given(old=SIZES, new=SIZES, proof=ANY_PROOF, roots=st.tuples(ANY_HASH, ANY_HASH))
@settings(max_examples=300, deadline=None)
def test_nothing_but_a_refusal_comes_of_an_invented_consistency(
    old: int, new: int, proof: list[bytes], roots: tuple[bytes, bytes]
) -> None:
    """Any bytes and any numbers are refused without a crash."""
    is_trivial = not proof and ((old == new and roots[0] == roots[1]) or (old == 0 and roots[0] == EMPTY_ROOT))
    assert is_trivial or refused(
        lambda: verify_consistency(old_size=old, old_root=roots[0], new_size=new, new_root=roots[1], proof=proof)
    )
