"""Who signs the checkpoints of a log whose signing key is rotated."""

import pytest

from keyvault.domain.checkpoints import checkpoint_origin, open_own_checkpoint, sign_checkpoint, verifier_keys
from keyvault.domain.keyring import KeyPurpose, Keyring, KeyringKey, KeyState
from servicekit.secrets import Secret
from transparency.checkpoints import open_checkpoint
from transparency.errors import CheckpointInvalidError

ROOT = bytes(32)


def ring_of(*states: KeyState) -> Keyring:
    """Return a ring whose signing keys are versions 1, 2, … in these states."""
    keys = [
        KeyringKey(KeyPurpose.CHECKPOINT, version, state, Secret(bytes([version]) * 32))
        for version, state in enumerate(states, 1)
    ]
    return Keyring("test", keys, {})


def test_whoever_trusts_the_old_key_can_read_what_the_new_one_signs() -> None:
    """As long as the old key is not disabled, both sign; the new one is the last that is listed."""
    before = ring_of(KeyState.PRIMARY)
    during = ring_of(KeyState.DECRYPT_ONLY, KeyState.PRIMARY)
    (old,) = verifier_keys(before)
    keys = verifier_keys(during)
    assert keys[0] == old
    signed = sign_checkpoint(during, 7, ROOT)
    for key in keys:
        assert open_checkpoint(signed.note, [key], origin=checkpoint_origin("test")) == signed.checkpoint
    assert open_own_checkpoint(before, signed.note).size == 7


def test_a_disabled_key_signs_no_more() -> None:
    """Whoever trusts it alone has to be told of the other key beforehand."""
    old, new = verifier_keys(ring_of(KeyState.DECRYPT_ONLY, KeyState.PRIMARY))
    note = sign_checkpoint(ring_of(KeyState.DISABLED, KeyState.PRIMARY), 7, ROOT).note
    assert open_checkpoint(note, [new]).size == 7
    with pytest.raises(CheckpointInvalidError):
        open_checkpoint(note, [old])


def test_a_staged_key_signs_nothing_yet() -> None:
    """It is not listed either."""
    ring = ring_of(KeyState.PRIMARY, KeyState.STAGED)
    assert len(verifier_keys(ring)) == 1
    assert sign_checkpoint(ring, 7, ROOT).note == sign_checkpoint(ring_of(KeyState.PRIMARY), 7, ROOT).note
