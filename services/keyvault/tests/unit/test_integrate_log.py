"""Integration of the log: the tree is that of the leaves whoever integrates when, and nothing forged is signed over."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from keyvault.adapters.memory import MemoryAuthority, MemoryKeyringStore
from keyvault.adapters.memory_tree import MemoryTree
from keyvault.domain.audit_log import AuditEntry, EntryKind, encode_leaf, leaf_hash
from keyvault.domain.checkpoints import open_own_checkpoint, sign_checkpoint, verifier_keys
from keyvault.domain.errors import AuditLogCorruptError
from keyvault.domain.keyring import KeyPurpose, Keyring, KeyState, draw_key
from keyvault.domain.leaf_seals import LeafSealer
from keyvault.ports import KeyringSource, StoredLeaf
from keyvault.usecases.check_leaves import CheckLeaves
from keyvault.usecases.integrate_log import IntegrateLog
from keyvault.usecases.prove_log import ProveLog
from keyvault.usecases.report_corruption import ReportCorruption
from servicekit.errors import UnavailableError
from services.keyvault.tests.unit.builders import NOW, keyring, leaf_sealer
from testkit.fake_clock import FakeClock
from transparency.checkpoints import open_checkpoint
from transparency.merkle import root_of, verify_inclusion
from transparency.tiles import TileId

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from keyvault.domain.checkpoints import SignedCheckpoint
    from keyvault.domain.keyring import KeyringKey
    from transparency.tiles import FullTile


@dataclass
class Rings(KeyringSource):
    """The snapshot of one replica, and what it would read if it read again."""

    ring: Keyring
    stored: Keyring | None = None

    @override
    def current(self) -> Keyring:
        return self.ring

    @override
    async def reload(self) -> Keyring:
        self.ring = self.stored or self.ring
        return self.ring


class Report(ReportCorruption):
    """What was reported."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    @override
    async def __call__(self, row_id: str, error: Exception) -> None:
        self.rows.append(row_id)


@dataclass
class Log:
    """A log and the replicas that integrate it."""

    rings: Rings = field(default_factory=lambda: Rings(keyring()))
    clock: FakeClock = field(default_factory=FakeClock)
    report: Report = field(default_factory=Report)

    def __post_init__(self) -> None:
        self.sealer = LeafSealer(self.rings.current)
        self.log = MemoryAuthority(MemoryKeyringStore(), self.sealer)
        self.tree = MemoryTree(self.log, self.clock)

    def replica(self, accepted: Mapping[int, bytes] | None = None, rings: Rings | None = None) -> IntegrateLog:
        """Return a replica that has seen nothing yet."""
        source = rings or self.rings
        return IntegrateLog(
            self.tree,
            check=CheckLeaves(LeafSealer(source.current), source, accepted or {}),
            prove=ProveLog(self.tree),
            keyring=source,
            report=self.report,
        )

    async def append(self, count: int = 1, *, key_id: str = "k") -> None:
        """Append entries."""
        entry = AuditEntry(kind=EntryKind.LEASE_GRANTED, time=NOW, caller="test", provider_key_id=key_id)
        await self.log.append([entry] * count)

    def row(self, index: int) -> StoredLeaf:
        """Return a row as it was written."""
        kind, leaf = self.log.leaves[index - 1]
        return StoredLeaf(index, int(kind), "key/k", leaf, leaf_hash(leaf))

    def root(self, size: int) -> bytes:
        """Return the root of the first leaves."""
        return root_of([leaf_hash(leaf) for _, leaf in self.log.leaves[:size]])


async def finding(replica: IntegrateLog, index: int) -> tuple[object, object]:
    """Return what keeps a replica from covering an index, and where."""
    with pytest.raises(AuditLogCorruptError) as caught:
        await replica.covering(index)
    return caught.value.facts["finding"], caught.value.facts["audit_index"]


@given(data=st.data(), batches=st.lists(st.integers(min_value=1, max_value=300), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_the_tree_is_that_of_the_leaves_whoever_integrates_when(data: st.DataObject, batches: list[int]) -> None:
    """Random appends, and after each whichever of three replicas: roots, tiles and proofs are those of the leaves."""

    async def run() -> None:
        log = Log()
        replicas = [log.replica() for _ in range(3)]
        for batch in batches:
            await log.append(batch)
            for replica in data.draw(st.lists(st.sampled_from(replicas), max_size=3)):
                signed = await replica.covering(len(log.log.leaves))
                assert (signed.size, signed.checkpoint.root) == (len(log.log.leaves), log.root(signed.size))
        signed = await replicas[0].covering(len(log.log.leaves))
        hashes = [leaf_hash(leaf) for _, leaf in log.log.leaves]
        for tile_id, tile in log.tree.tiles.items():
            if tile_id.level == 0:
                assert tile.hashes == b"".join(hashes[256 * tile_id.position : 256 * (tile_id.position + 1)])
        assert {each.position for each in log.tree.tiles if each.level == 0} == set(range(signed.size // 256))
        for index in {1, signed.size // 2 or 1, signed.size}:
            (proved,) = await ProveLog(log.tree).leaves([index], signed.checkpoint)
            verify_inclusion(
                leaf_hash=hashes[index - 1],
                index=index - 1,
                size=signed.size,
                proof=list(proved.proof),
                root=signed.checkpoint.root,
            )

    asyncio.run(run())


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 513])
async def test_every_size_is_signed(size: int) -> None:
    """Also the empty log, and those at the edges of a tile; by one replica and by another that comes after."""
    log = Log()
    if size:
        await log.append(size)
    for replica in (log.replica(), log.replica()):
        signed = await replica.covering(size)
        assert (signed.size, signed.checkpoint.root) == (size, log.root(size))
        assert open_checkpoint(signed.note, verifier_keys(log.rings.ring)) == signed.checkpoint
        assert await replica.newest() == signed


async def test_callers_at_the_same_time_share_one_pass() -> None:
    """A hundred questions cost one checkpoint."""
    log = Log()
    await log.append(10)
    replica = log.replica()
    answers = await asyncio.gather(*(replica.covering(index % 10 + 1) for index in range(100)))
    assert len(set(answers)) == len(log.tree.checkpoints) == 1


async def test_two_replicas_at_once_sign_the_same() -> None:
    """They race through the same entries; what both write is equal."""
    log = Log()
    await log.append(700)
    first, second = await asyncio.gather(log.replica().covering(700), log.replica().covering(700))
    assert first == second
    assert len(log.tree.checkpoints) == 1


async def test_what_another_replica_did_lately_is_not_done_again() -> None:
    """Replicas take turns: a pass is due an interval after the newest checkpoint, whoever signed it."""
    log = Log()
    first, second = log.replica(), log.replica()
    second_long = timedelta(seconds=1)
    await log.append()
    await first.if_due(second_long)
    await log.append()
    await second.if_due(second_long)
    assert sorted(log.tree.checkpoints) == [1]
    assert second.uncovered == 1
    await log.clock.advance(second_long)
    await second.if_due(second_long)
    await first.if_due(second_long)
    assert sorted(log.tree.checkpoints) == [1, 2]
    assert (first.newest_size, second.newest_size) == (2, 2)
    await log.clock.advance(second_long)
    await first.if_due(second_long)
    assert sorted(log.tree.checkpoints) == [1, 2]


def forged(row: StoredLeaf, leaf: bytes) -> StoredLeaf:
    """Return a row with another leaf, and its hash beside it."""
    return row._replace(leaf=leaf, leaf_hash=leaf_hash(leaf))


OTHER = leaf_sealer()
INVENTED = AuditEntry(kind=EntryKind.LEASE_GRANTED, time=NOW, caller="mallory", provider_key_id="k")
ATTACKS: dict[str, tuple[Callable[[Log], StoredLeaf | None], str]] = {
    "a leaf is edited": (lambda log: forged(log.row(5), log.row(5).leaf.replace(b"test", b"tess")), "LEAF_FORGED"),
    "a leaf is edited without its hash": (lambda log: log.row(5)._replace(leaf=b"x" + log.row(5).leaf), "LEAF_EDITED"),
    "a hash is edited": (lambda log: log.row(5)._replace(leaf_hash=bytes(32)), "LEAF_EDITED"),
    "a leaf is invented": (lambda log: forged(log.row(5), encode_leaf(INVENTED, key_version=1)), "LEAF_FORGED"),
    "a leaf is sealed with another key": (lambda log: forged(log.row(5), OTHER.seal(INVENTED)), "LEAF_FORGED"),
    "a leaf names a key that there is not": (
        lambda log: forged(log.row(5), encode_leaf(INVENTED, key_version=9)),
        "LEAF_FORGED",
    ),
    "a leaf is forgotten too early": (lambda log: log.row(5)._replace(leaf=b""), "LEAF_EDITED"),
    "a leaf of the same pass is copied": (lambda log: forged(log.row(5), log.row(4).leaf), "LEAF_FORGED"),
    "a signed leaf is copied": (lambda log: forged(log.row(5), log.row(2).leaf), "LEAF_FORGED"),
    "a row is moved to another key": (lambda log: log.row(5)._replace(subject="key/other"), "COLUMN_DISAGREES"),
    "a row is hidden from owners": (lambda log: log.row(5)._replace(kind=101), "COLUMN_DISAGREES"),
    "a row is deleted": (lambda _: None, "LEAF_MISSING"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_nothing_forged_is_signed_over(attack: str) -> None:
    """The checkpoint before it stays the newest for every replica, until the row is as it was."""
    log = Log()
    await log.append(3)
    replica = log.replica()
    await replica.covering(3)
    await log.append(3)
    # The control: without the attack the entries are signed.
    untouched = Log(rings=log.rings)
    untouched.log.leaves = log.log.leaves
    assert (await untouched.replica().covering(6)).checkpoint.root == log.root(6)
    make, kind = ATTACKS[attack]
    log.tree.tampered[5] = make(log)
    for each in (replica, replica, log.replica()):
        assert await finding(each, 6) == (kind, 5)
        assert each.is_corrupt
        assert (await each.newest()).size == 3
    assert sorted(log.tree.checkpoints) == [3]
    assert log.report.rows[0] == "audit_entries/5"
    assert log.report.rows.count("audit_entries/5") == len(log.report.rows) <= 2
    del log.tree.tampered[5]
    assert (await replica.covering(6)).checkpoint.root == log.root(6)
    assert not replica.is_corrupt


class Blind(LeafSealer):
    """Seals, and checks nothing."""

    @override
    def check(self, leaf: bytes, *, kind: int, subject: str) -> None:
        """Let everything pass."""


SEALED_OFF = [name for name, (_, kind) in ATTACKS.items() if kind in ("LEAF_FORGED", "COLUMN_DISAGREES")]


@pytest.mark.parametrize("attack", [name for name in SEALED_OFF if "copied" not in name])
async def test_without_the_seal_a_forgery_would_be_signed(attack: str) -> None:
    """It is the seal that tells them: hash and place of these are right."""
    log = Log()
    await log.append(6)
    log.tree.tampered[5] = ATTACKS[attack][0](log)
    replica = IntegrateLog(
        log.tree,
        check=CheckLeaves(Blind(log.rings.current), log.rings, {}),
        prove=ProveLog(log.tree),
        keyring=log.rings,
        report=log.report,
    )
    assert (await replica.covering(6)).size == 6


async def test_an_entry_behind_the_head_is_found() -> None:
    """A row that was inserted without moving the head keeps everybody from appending, so it is told of."""
    log = Log()
    await log.append(3)
    row = log.row(3)._replace(audit_index=4)
    log.tree.tampered[4] = row
    assert await finding(log.replica(), 3) == ("LEAF_FORGED", 4)


async def test_an_operator_can_accept_what_stands_there() -> None:
    """An entry that fails its check passes by the hash that the operator has looked at, and by no other."""
    log = Log()
    await log.append(6)
    log.tree.tampered[5] = bad = forged(log.row(5), b"not a leaf")
    assert await finding(log.replica({5: bytes(32)}), 6) == ("LEAF_FORGED", 5)
    assert await finding(log.replica({4: bad.leaf_hash}), 6) == ("LEAF_FORGED", 5)
    signed = await log.replica({5: bad.leaf_hash}).covering(6)
    hashes = [leaf_hash(leaf) for _, leaf in log.log.leaves]
    assert signed.checkpoint.root == root_of([*hashes[:4], bad.leaf_hash, hashes[5]])


class DyingTree(MemoryTree):
    """A store whose process dies before its checkpoint is written."""

    is_dying = True

    @override
    async def put_checkpoint(self, size: int, note: str) -> str:
        if self.is_dying:
            raise UnavailableError("gone")
        return await super().put_checkpoint(size, note)


async def test_a_process_that_dies_between_tile_and_checkpoint_leaves_nothing_wrong() -> None:
    """The tiles that it wrote are those that the next one would write."""
    log = Log()
    log.tree = dying = DyingTree(log.log, log.clock)
    await log.append(600)
    replica = log.replica()
    with pytest.raises(UnavailableError):
        await replica.covering(600)
    assert len(dying.tiles) == 2
    assert not dying.checkpoints
    dying.is_dying = False
    await log.append(300)
    for each in (replica, log.replica()):
        assert (await each.covering(900)).checkpoint.root == log.root(900)


async def test_a_tile_with_other_hashes_is_found() -> None:
    """A tile that was put there before it is due, or edited, is not signed over."""
    log = Log()
    await log.append(300)
    await log.replica().covering(255)
    tile = log.tree.tiles[TileId(0, 0)]
    for changed in (replace(tile, hashes=bytes(8192)), replace(tile, root=bytes(32))):
        log.tree.tiles[TileId(0, 0)] = changed
        log.tree.checkpoints.clear()
        assert await finding(log.replica(), 300) == ("TREE_FORKED", 0)


async def test_a_root_of_a_tile_that_was_edited_is_found_by_whoever_goes_on_from_it() -> None:
    """A new process proves the tree against the signed root before it adds to it."""
    log = Log()
    await log.append(300)
    await log.replica().covering(300)
    tile = log.tree.tiles[TileId(0, 0)]
    log.tree.tiles[TileId(0, 0)] = replace(tile, root=bytes(32))
    await log.append()
    assert await finding(log.replica(), 301) == ("TREE_FORKED", 300)
    log.tree.tiles[TileId(0, 0)] = tile
    assert (await log.replica().covering(301)).checkpoint.root == log.root(301)


async def test_a_checkpoint_of_another_tree_is_a_fork() -> None:
    """Two roots of one size, both signed, are told by whoever comes second."""
    log = Log()
    await log.append(3)
    first = log.replica()
    forked = sign_checkpoint(log.rings.ring, 3, bytes(32))
    await first.covering(0)

    class RacingTree(MemoryTree):
        @override
        async def put_checkpoint(self, size: int, note: str) -> str:
            return forked.note

    log.tree = RacingTree(log.log, log.clock)
    assert await finding(log.replica(), 3) == ("TREE_FORKED", 3)


@pytest.mark.parametrize("forgery", ["note", "size", "unsigned", "fork"])
async def test_a_forged_checkpoint_is_not_believed(forgery: str) -> None:
    """Nobody goes on from a checkpoint that this service did not sign, or not for this tree."""
    log = Log()
    await log.append(3)
    replica = log.replica()
    signed = await replica.covering(3)
    note, size = {
        "note": (signed.note.replace("\n3\n", "\n4\n"), 4),
        "size": (signed.note, 4),
        "unsigned": ("x", 4),
        "fork": (sign_checkpoint(log.rings.ring, 4, bytes(32)).note, 4),
    }[forgery]
    await log.append(2)
    log.tree.checkpoints[size] = (note, log.clock.now())
    for each in (replica, log.replica()):
        assert (await finding(each, 5))[0] == "TREE_FORKED"
    del log.tree.checkpoints[size]
    assert (await replica.covering(5)).checkpoint.root == log.root(5)


async def test_a_log_that_was_rolled_back_is_told_by_whoever_remembers() -> None:
    """Checkpoints and entries that are gone, or replaced by others of the same number."""
    log = Log()
    await log.append(5)
    replica = log.replica()
    kept = dict(log.tree.checkpoints)
    await replica.covering(5)
    log.tree.checkpoints = kept
    del log.log.leaves[3:]
    assert await finding(replica, 6) == ("TRUNCATED", 1)
    await log.append(4)
    await log.replica().covering(7)
    assert await finding(replica, 7) == ("TREE_FORKED", 5)


async def test_a_checkpoint_of_a_new_key_is_read_after_one_reload() -> None:
    """Rotation: a replica that has not heard of it follows, and goes on with what it has until then."""
    old = keyring()
    records = [old.key(purpose, 1) for purpose in KeyPurpose]
    new_key = draw_key(KeyPurpose.CHECKPOINT, version=2)
    rotated = Keyring("test", [*(_retired(each) for each in records), new_key], {})
    alone = Keyring("test", [*(each for each in records if each.purpose is not KeyPurpose.CHECKPOINT), new_key], {})
    for new_ring in (rotated, alone):
        log = Log(rings=Rings(old))
        await log.append(3)
        slow = log.replica()
        before = await slow.covering(3)
        await log.append(3)
        log.rings.stored = new_ring
        fast = log.replica(rings=Rings(new_ring))
        if new_ring is alone:
            # The old key is gone, and with it whoever could say what it signed: nobody goes on from its checkpoint.
            assert (await finding(fast, 6))[0] == "TREE_FORKED"
            continue
        after = await fast.covering(6)
        assert (await slow.newest()).note == after.note
        assert open_own_checkpoint(old, before.note) == before
        assert log.rings.ring is old, "the new checkpoint carries the old signature too, so nothing had to be reloaded"
        await log.append(1)
        assert _sizes(await slow.covering(7), await fast.covering(7)) == (7, 7)


def _retired(key: KeyringKey) -> KeyringKey:
    return replace(key, state=KeyState.DECRYPT_ONLY) if key.purpose is KeyPurpose.CHECKPOINT else key


def _sizes(*signed: SignedCheckpoint) -> Sequence[int]:
    return tuple(each.size for each in signed)


async def test_a_leaf_under_a_new_key_is_read_after_one_reload() -> None:
    """Another replica sealed with a version of the authority key that this one has not read yet."""
    old = keyring()
    keys = [old.key(purpose, 1) for purpose in KeyPurpose]
    retired = [replace(each, state=KeyState.DECRYPT_ONLY) for each in keys if each.purpose is KeyPurpose.AUTHORITY_MAC]
    others = [each for each in keys if each.purpose is not KeyPurpose.AUTHORITY_MAC]
    new = Keyring("test", [*others, *retired, draw_key(KeyPurpose.AUTHORITY_MAC, version=2)], {})
    log = Log(rings=Rings(new))
    await log.append(3)
    stale = Rings(old, stored=new)
    assert (await log.replica(rings=stale).covering(3)).size == 3
    assert stale.ring is new


class StoreOfTiles(MemoryTree):
    """Counts what is written at once."""

    written: list[int]

    @override
    async def put_tiles(self, tiles: Sequence[FullTile]) -> list[TileId]:
        self.written.append(len(tiles))
        return await super().put_tiles(tiles)


async def test_a_backlog_is_written_in_small_pieces() -> None:
    """No statement and no slice of work grows with the backlog."""
    log = Log()
    log.tree = tree = StoreOfTiles(log.log, log.clock)
    tree.written = []
    await log.append(1500)
    await log.replica().covering(1500)
    assert tree.written == [1, 1, 1, 1, 1]
