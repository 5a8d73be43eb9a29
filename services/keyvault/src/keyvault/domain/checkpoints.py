"""The checkpoints of this deployment's log: its name, and the keys that sign for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyvault.domain.keyring import KeyPurpose
from transparency.checkpoints import Checkpoint, CheckpointSigner, open_checkpoint
from transparency.notes import joined_notes

if TYPE_CHECKING:
    from keyvault.domain.keyring import Keyring


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint, and the note that proves it to others."""

    checkpoint: Checkpoint
    note: str

    @property
    def size(self) -> int:
        """Return how many entries it covers, which is also the last index that it covers."""
        return self.checkpoint.size


def checkpoint_origin(deployment: str) -> str:
    """Return the name of a deployment's log."""
    return f"byok.keyvault/{deployment}"


def sign_checkpoint(ring: Keyring, size: int, root: bytes) -> SignedCheckpoint:
    """Return the checkpoint of the tree with this size and root, signed by the present key and those it took over from.

    As long as an older key is not disabled, whoever trusts it alone sees that it speaks for the present one too.
    """
    checkpoint = Checkpoint(checkpoint_origin(ring.deployment), size, root)
    present = ring.primary(KeyPurpose.CHECKPOINT).version
    older = [version for version in ring.usable_versions(KeyPurpose.CHECKPOINT) if version != present]
    return SignedCheckpoint(
        checkpoint, joined_notes(_signer(ring, version).sign(checkpoint) for version in (present, *older))
    )


def verifier_keys(ring: Keyring) -> list[str]:
    """Return the verifier keys of all versions that can still be had, the newest last."""
    return [_signer(ring, version).verifier_key for version in reversed(ring.usable_versions(KeyPurpose.CHECKPOINT))]


def open_own_checkpoint(ring: Keyring, note: str) -> SignedCheckpoint:
    """Return the checkpoint in `note`. Raises CheckpointInvalidError unless a key of this ring signed it."""
    origin = checkpoint_origin(ring.deployment)
    return SignedCheckpoint(open_checkpoint(note, verifier_keys(ring), origin=origin), note)


def _signer(ring: Keyring, version: int) -> CheckpointSigner:
    return CheckpointSigner(checkpoint_origin(ring.deployment), ring.key(KeyPurpose.CHECKPOINT, version).key.reveal())
