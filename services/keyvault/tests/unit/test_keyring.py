"""The keyring: which versions may do what, and what unlocking it needs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import pytest

from keyvault.adapters.root_keys.file import FileRootKey, read_root_key
from keyvault.domain.errors import (
    KekVersionUnavailableError,
    KeyringStateError,
    KeyringUnusableError,
    RootKeyUnusableError,
)
from keyvault.domain.keyring import (
    KeyPurpose,
    KeyringRecord,
    KeyState,
    ensure_transition,
    new_record,
    new_records,
    unlock,
)
from servicekit.secrets import Secret
from services.keyvault.tests.unit.builders import ROOT

if TYPE_CHECKING:
    from pathlib import Path

ALLOWED = {
    (KeyState.STAGED, KeyState.PRIMARY),
    (KeyState.PRIMARY, KeyState.DECRYPT_ONLY),
    (KeyState.DECRYPT_ONLY, KeyState.DISABLED),
    (KeyState.DISABLED, KeyState.DECRYPT_ONLY),
    (KeyState.DISABLED, KeyState.DESTROYED),
}


def kek_in(state: KeyState) -> list[KeyringRecord]:
    """Return a ring whose KEK version 1 stands in `state`, beside a primary version 2."""
    records = new_records("test", root=ROOT, root_key_id=ROOT.root_key_id)
    records[0] = replace(records[0], state=state)
    return [*records, new_record("test", KeyPurpose.KEK, version=2, root=ROOT, root_key_id=ROOT.root_key_id)]


@pytest.mark.parametrize(("old", "new"), list(product(KeyState, KeyState)))
def test_only_the_drawn_transitions_are_allowed(old: KeyState, new: KeyState) -> None:
    """Every pair of states is allowed or refused as the module draws it."""
    if (old, new) in ALLOWED:
        ensure_transition(old, new)
    else:
        with pytest.raises(KeyringStateError):
            ensure_transition(old, new)


@pytest.mark.parametrize("state", [KeyState.STAGED, KeyState.DISABLED, KeyState.DESTROYED])
def test_a_version_that_may_not_unwrap_does_not(state: KeyState) -> None:
    """STAGED, DISABLED and DESTROYED versions are a typed error, never an empty result."""
    ring = unlock("test", kek_in(state), lambda _: ROOT)
    with pytest.raises(KekVersionUnavailableError) as caught:
        ring.kek(1)
    assert caught.value.facts == {"kek_version": 1}
    assert ring.primary_kek().version == 2


def test_a_decrypt_only_version_unwraps() -> None:
    """What was wrapped before a promotion opens after it."""
    assert unlock("test", kek_in(KeyState.DECRYPT_ONLY), lambda _: ROOT).kek(1).version == 1


def test_two_primaries_are_a_damaged_ring() -> None:
    """A ring with two primary versions of one key is not served with."""
    with pytest.raises(KeyringUnusableError):
        unlock("test", kek_in(KeyState.PRIMARY), lambda _: ROOT)


def test_another_root_key_unlocks_nothing() -> None:
    """A ring wrapped by one root key is refused with another."""
    records = new_records("test", root=ROOT, root_key_id=ROOT.root_key_id)
    with pytest.raises(RootKeyUnusableError):
        unlock("test", records, lambda _: FileRootKey(Secret(bytes(32))))


def test_another_deployment_unlocks_nothing() -> None:
    """A ring does not serve a deployment that it was not made for."""
    records = new_records("test", root=ROOT, root_key_id=ROOT.root_key_id)
    with pytest.raises(RootKeyUnusableError):
        unlock("other", records, lambda _: ROOT)


def test_keys_of_the_ring_do_not_change_places() -> None:
    """The wrapped key of one purpose is refused in the row of another."""
    records = new_records("test", root=ROOT, root_key_id=ROOT.root_key_id)
    records[0] = replace(records[0], wrapped_key=records[1].wrapped_key)
    with pytest.raises(RootKeyUnusableError):
        unlock("test", records, lambda _: ROOT)


def test_a_broken_canary_of_the_primary_kek_is_found() -> None:
    """A ring whose primary KEK does not open its canary is not served with; an intact one is."""
    records = new_records("test", root=ROOT, root_key_id=ROOT.root_key_id)
    unlock("test", records, lambda _: ROOT).check_primary_kek()
    records[0] = replace(records[0], canary=records[1].canary)
    ring = unlock("test", records, lambda _: ROOT)
    with pytest.raises(KeyringUnusableError):
        ring.check_primary_kek()
    assert ring.probe_canaries() == {(purpose, 1): purpose is not KeyPurpose.KEK for purpose in KeyPurpose}


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
