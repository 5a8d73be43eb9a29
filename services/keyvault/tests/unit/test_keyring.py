"""The keyring: which versions may do what, and what unlocking it needs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from keyvault.adapters.memory import MemoryKeyringStore
from keyvault.adapters.root_keys.file import FileRootKey, read_root_key
from keyvault.domain.errors import (
    KekVersionUnavailableError,
    KeyringStateError,
    KeyringUnusableError,
    RootKeyUnavailableError,
    RootKeyUnusableError,
)
from keyvault.domain.keyring import (
    KeyPurpose,
    Keyring,
    KeyState,
    draw_key,
    ensure_transition,
    make_record,
    unlock,
)
from keyvault.usecases.hold_keyring import HoldKeyring, unwrap_records, wrap_key, wrap_new_keys
from servicekit.secrets import Secret
from services.keyvault.tests.unit.builders import ROOT

if TYPE_CHECKING:
    from pathlib import Path

OTHER_ROOT = FileRootKey(Secret(bytes(32)))
ALLOWED = {
    (KeyState.STAGED, KeyState.PRIMARY),
    (KeyState.PRIMARY, KeyState.DECRYPT_ONLY),
    (KeyState.DECRYPT_ONLY, KeyState.DISABLED),
    (KeyState.DISABLED, KeyState.DECRYPT_ONLY),
    (KeyState.DISABLED, KeyState.DESTROYED),
}


def kek_in(state: KeyState) -> Keyring:
    """Return a ring whose KEK version 1 stands in `state`, beside a primary version 2."""
    keys = [draw_key(KeyPurpose.KEK, version=1, state=state), draw_key(KeyPurpose.KEK, version=2)]
    keys += [draw_key(purpose, version=1) for purpose in KeyPurpose if purpose is not KeyPurpose.KEK]
    return unlock(
        "test", [(make_record("test", key, root_key_id=ROOT.root_key_id, wrapped_key=b""), key.key) for key in keys]
    )


@pytest.mark.parametrize(("old", "new"), list(product(KeyState, KeyState)))
def test_only_the_drawn_transitions_are_allowed(old: KeyState, new: KeyState) -> None:
    """Every pair of states is allowed or refused as the module draws it."""
    if (old, new) in ALLOWED:
        ensure_transition(old, new)
    else:
        with pytest.raises(KeyringStateError):
            ensure_transition(old, new)


@pytest.mark.parametrize("state", [KeyState.STAGED, KeyState.DISABLED])
def test_a_version_that_may_not_unwrap_does_not(state: KeyState) -> None:
    """STAGED and DISABLED versions are a typed error, never an empty result."""
    ring = kek_in(state)
    with pytest.raises(KekVersionUnavailableError) as caught:
        ring.kek(1)
    assert caught.value.facts == {"kek_version": 1}
    assert ring.primary_kek().version == 2


def test_a_decrypt_only_version_unwraps() -> None:
    """What was wrapped before a promotion opens after it."""
    assert kek_in(KeyState.DECRYPT_ONLY).kek(1).version == 1


def test_two_primaries_are_a_damaged_ring() -> None:
    """A ring with two primary versions of one key is not served with."""
    with pytest.raises(KeyringUnusableError):
        kek_in(KeyState.PRIMARY)


async def test_a_destroyed_version_is_not_unwrapped() -> None:
    """What is left of a destroyed version is passed over, and asking for it is a typed error."""
    records = await wrap_new_keys("test", KeyPurpose, ROOT)
    gone = replace(records[0], state=KeyState.DESTROYED, wrapped_key=b"", version=1)
    primary = await wrap_key("test", draw_key(KeyPurpose.KEK, version=2), ROOT)
    ring = await unwrap_records("test", [gone, primary, *records[1:]], [ROOT])
    with pytest.raises(KekVersionUnavailableError):
        ring.kek(1)
    assert ring.primary_kek().version == 2


async def test_another_root_key_unlocks_nothing() -> None:
    """A ring wrapped by one root key is refused with another, also when that one claims to be the first."""
    records = await wrap_new_keys("test", KeyPurpose, ROOT)
    with pytest.raises(RootKeyUnusableError) as caught:
        await unwrap_records("test", records, [OTHER_ROOT])
    assert caught.value.facts == {"root_key_id": ROOT.root_key_id}
    claimed = [replace(record, root_key_id=OTHER_ROOT.root_key_id) for record in records]
    with pytest.raises(RootKeyUnusableError):
        await unwrap_records("test", claimed, [OTHER_ROOT])


async def test_either_of_two_root_keys_unlocks_what_it_wrapped() -> None:
    """In the middle of a rotation the ring is wrapped by two root keys, and whole."""
    records = await wrap_new_keys("test", KeyPurpose, ROOT)
    records[1:] = (await wrap_new_keys("test", KeyPurpose, OTHER_ROOT))[1:]
    ring = await unwrap_records("test", records, [ROOT, OTHER_ROOT])
    assert all(ring.probe_canaries().values())
    with pytest.raises(RootKeyUnusableError):
        await unwrap_records("test", records, [ROOT])


async def test_another_deployment_unlocks_nothing() -> None:
    """A ring does not serve a deployment that it was not made for."""
    records = await wrap_new_keys("test", KeyPurpose, ROOT)
    with pytest.raises(RootKeyUnusableError):
        await unwrap_records("other", records, [ROOT])


async def test_keys_of_the_ring_do_not_change_places() -> None:
    """The wrapped key of one purpose is refused in the row of another."""
    records = await wrap_new_keys("test", KeyPurpose, ROOT)
    records[0] = replace(records[0], wrapped_key=records[1].wrapped_key)
    with pytest.raises(RootKeyUnusableError):
        await unwrap_records("test", records, [ROOT])


async def test_a_broken_canary_of_the_primary_kek_is_found() -> None:
    """A ring whose primary KEK does not open its canary is not served with; an intact one is."""
    records = await wrap_new_keys("test", KeyPurpose, ROOT)
    (await unwrap_records("test", records, [ROOT])).check_primary_kek()
    records[0] = replace(records[0], canary=records[1].canary)
    ring = await unwrap_records("test", records, [ROOT])
    with pytest.raises(KeyringUnusableError):
        ring.check_primary_kek()
    assert ring.probe_canaries() == {(purpose, 1): purpose is not KeyPurpose.KEK for purpose in KeyPurpose}


async def test_a_ring_of_an_older_release_gets_what_is_new() -> None:
    """The start adds the purpose that came later, keeps every key that is there, and does so once."""
    store = MemoryKeyringStore()
    old = await wrap_new_keys("test", [purpose for purpose in KeyPurpose if purpose is not KeyPurpose.CHECKPOINT], ROOT)
    await store.create(old)
    for _ in range(2):
        ring = await HoldKeyring(store, root=ROOT, deployment="test").unlock()
        assert [(key.purpose, key.version) for key in store.records] == [(purpose, 1) for purpose in KeyPurpose]
        assert store.records[:-1] == old
        assert all(ring.probe_canaries().values())


@pytest.mark.parametrize("lost", [purpose for purpose in KeyPurpose if purpose is not KeyPurpose.CHECKPOINT])
async def test_a_purpose_that_was_lost_is_not_made_anew(lost: KeyPurpose) -> None:
    """A ring that lacks what every release has is damaged; a fresh key in its place would hide that."""
    store = MemoryKeyringStore()
    store.records = [record for record in await wrap_new_keys("test", KeyPurpose, ROOT) if record.purpose is not lost]
    with pytest.raises(KeyringUnusableError):
        await HoldKeyring(store, root=ROOT, deployment="test").unlock()


class RootAway(FileRootKey):
    """A root key that can be away."""

    is_away = False

    @override
    async def unwrap(self, wrapped: bytes, associated_data: bytes) -> Secret:
        if self.is_away:
            raise RootKeyUnavailableError("away")
        return await super().unwrap(wrapped, associated_data)


async def test_a_state_changes_while_the_root_key_is_away() -> None:
    """A version that was unwrapped before is disabled at once; only one that is new needs the root key."""
    store, root = MemoryKeyringStore(), RootAway(Secret(bytes(range(32))))
    holder = HoldKeyring(store, root=root, deployment="test")
    await holder.unlock()
    store.set_state(KeyPurpose.KEK, 1, KeyState.DECRYPT_ONLY)
    await store.create([await wrap_key("test", draw_key(KeyPurpose.KEK, version=2), root)])
    await holder.reload()
    root.is_away = True
    store.set_state(KeyPurpose.KEK, 1, KeyState.DISABLED)
    ring = await holder.reload()
    assert ring.primary_kek().version == 2
    with pytest.raises(KekVersionUnavailableError):
        ring.kek(1)
    store.set_state(KeyPurpose.KEK, 2, KeyState.DECRYPT_ONLY)
    await store.create([await wrap_key("test", draw_key(KeyPurpose.KEK, version=3), root)])
    with pytest.raises(RootKeyUnavailableError):
        await holder.reload()
    assert holder.current() is ring


async def test_a_key_that_was_exchanged_is_unwrapped_anew() -> None:
    """What is remembered is the wrapped key, not its place: other bytes in the row are looked at, and refused."""
    store = MemoryKeyringStore()
    holder = HoldKeyring(store, root=ROOT, deployment="test")
    await holder.unlock()
    store.records[0] = replace(store.records[0], wrapped_key=store.records[1].wrapped_key)
    with pytest.raises(RootKeyUnusableError):
        await holder.reload()


async def test_replicas_that_start_together_hold_one_ring() -> None:
    """However many make a first keyring at once, all go on with the one that was stored."""
    store = MemoryKeyringStore()
    holders = [HoldKeyring(store, root=ROOT, deployment="test") for _ in range(4)]
    rings = await asyncio.gather(*(holder.unlock() for holder in holders))
    assert len({ring.primary_kek().key.reveal() for ring in rings}) == 1


def test_a_root_key_file_is_read(tmp_path: Path) -> None:
    """64 hex digits with white space around them are a root key, and its id says nothing of it."""
    path = tmp_path / "root.key"
    path.write_text(" " + bytes(range(32)).hex() + "\n")
    path.chmod(0o400)
    root = read_root_key(path)
    assert root.root_key_id == ROOT.root_key_id
    assert bytes(range(32)).hex()[:16] not in root.root_key_id


@pytest.mark.parametrize("content", ["", "abc", "5f" * 31, "5f" * 33, "zz" * 32, "5f" * 2000])
def test_a_malformed_root_key_file_is_refused(tmp_path: Path, content: str) -> None:
    """Anything else in the file stops the start, without being shown."""
    path = tmp_path / "root.key"
    path.write_text(content)
    path.chmod(0o400)
    with pytest.raises(RootKeyUnusableError) as caught:
        read_root_key(path)
    assert not content or content not in str(caught.value)


def test_a_root_key_file_that_everybody_reads_is_refused(tmp_path: Path) -> None:
    """A world-readable root key stops the start; so does none."""
    path = tmp_path / "root.key"
    path.write_text("5f" * 32)
    path.chmod(0o444)
    with pytest.raises(RootKeyUnusableError):
        read_root_key(path)
    with pytest.raises(RootKeyUnusableError):
        read_root_key(tmp_path / "missing")
