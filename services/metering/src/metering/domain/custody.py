"""What is witnessed of KeyVault's audit log, and what contradicts it.

    NOT_WITNESSED ──a checkpoint under a trusted key──▶ CONSISTENT ──a larger log that continues it──▶ CONSISTENT
          └──────────anything else────────┐                  │ smaller, forked, another log's, or not signed by a
                                          ▼                  ▼ trusted key
                                         ROLLED_BACK: nothing is admitted ──an operator accepts──▶ CONSISTENT

Which keys are trusted:

- Those that the operator pinned. Then no other key ever is.
- Without a pin: those that KeyVault lists, and that sign its checkpoint, when the first one is witnessed or when an
  operator accepts a restore. Afterwards a key that KeyVault lists is trusted once it has signed a checkpoint that a
  trusted key has signed too: during a rotation KeyVault signs with both.

What was never witnessed cannot be missed: entries after the newest witnessed checkpoint may be lost unnoticed.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Final

import msgspec

from transparency.checkpoints import open_checkpoint
from transparency.errors import CheckpointInvalidError, ProofInvalidError
from transparency.merkle import verify_consistency

KEYS_MAX: Final = 16
REASON_LENGTH_MAX: Final = 200
# What KeyVault sent is kept as evidence, and must not grow a row without end.
EVIDENCE_LENGTH_MAX: Final = 16_384


class CustodyState(IntEnum):
    """How KeyVault's audit log stands to what was witnessed of it."""

    NOT_WITNESSED = 1
    CONSISTENT = 2
    ROLLED_BACK = 3


class WitnessedCheckpoint(msgspec.Struct, frozen=True):
    """A signed checkpoint whose signature was good, taken apart."""

    note: str
    origin: str
    size: int
    root: bytes


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """What KeyVault answers to somebody who holds the checkpoint of a size."""

    checkpoint: str
    consistency_proof: tuple[bytes, ...] = ()
    is_behind: bool = False
    next_after_index: int = 0


class ListedCheckpoint(msgspec.Struct, frozen=True):
    """KeyVault's newest checkpoint, and the keys that it says have signed checkpoints."""

    checkpoint: str
    verifier_keys: tuple[str, ...]


class Contradiction(msgspec.Struct, frozen=True):
    """What KeyVault said, and why it cannot follow what was witnessed."""

    checkpoint: str
    description: str
    # Where KeyVault itself finds its log corrupt; 0 when it does not.
    corrupt_index: int = 0


class CustodyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What all replicas know of KeyVault's audit log."""

    # Rises with every new checkpoint and change of state: who writes names the one that they read.
    version: int = 0
    # Counts accepted restores: a finding of an earlier epoch says nothing of the present one.
    epoch: int = 0
    state: CustodyState = CustodyState.NOT_WITNESSED
    held: WitnessedCheckpoint | None = None
    verifier_keys: tuple[str, ...] = ()
    # The feed of key events was read up to here; whoever tells owners of them goes on from it.
    feed_index: int = 0
    witness_time: datetime | None = None
    # How long ago KeyVault last showed a log that continues `held`.
    age: timedelta | None = None
    contradiction: Contradiction | None = None
    rollback_time: datetime | None = None
    # Corruption here was accepted by an operator, and stops nothing any more.
    excused_index: int = 0

    @property
    def size(self) -> int:
        """Return the size of the newest witnessed checkpoint; 0 without one."""
        return self.held.size if self.held else 0


class AcceptedRestore(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's word that a restore was deliberate."""

    request_id: str
    actor: str
    reason: str
    witnessed_size: int


def opened(note: str, verifier_keys: Sequence[str], *, origin: str | None = None) -> WitnessedCheckpoint:
    """Return a checkpoint that one of the keys has signed.

    Raises:
        CheckpointInvalidError: None of them has, or it is of another log.
    """
    checkpoint = open_checkpoint(note, list(verifier_keys), origin=origin)
    return WitnessedCheckpoint(note, checkpoint.origin, checkpoint.size, checkpoint.root)


def judge(
    held: WitnessedCheckpoint | None, page: LogPage, *, trusted_keys: Sequence[str]
) -> WitnessedCheckpoint | Contradiction:
    """Return the checkpoint of a page if it continues the one that was held when the page was asked for.

    A page is never judged by a checkpoint that was witnessed after it was asked for: of two replicas that read at the
    same time, the slower one would find the log smaller.
    """
    if page.is_behind and held is not None:
        return _contradiction(page, f"KeyVault says that its log is shorter than the {held.size} entries witnessed.")
    try:
        seen = opened(page.checkpoint, trusted_keys, origin=held.origin if held else None)
    except CheckpointInvalidError as error:
        return _contradiction(page, f"The checkpoint is not one of this log under a trusted key: {error}")
    if held is None:
        return seen
    if seen.size < held.size:
        return _contradiction(page, f"The log has {seen.size} entries; {held.size} were witnessed.")
    if seen.size == held.size:
        if seen.root != held.root:
            return _contradiction(page, f"The log of {seen.size} entries is another one than was witnessed.")
        return seen
    try:
        verify_consistency(
            old_size=held.size,
            old_root=held.root,
            new_size=seen.size,
            new_root=seen.root,
            proof=list(page.consistency_proof),
        )
    except ProofInvalidError as error:
        return _contradiction(
            page, f"The log of {seen.size} entries does not continue the {held.size} entries witnessed: {error}"
        )
    return seen


def corrupt_log(message: str, *, at: int) -> Contradiction:
    """Return the finding that KeyVault itself cannot give a checkpoint or a proof from what its log holds."""
    description = f"KeyVault finds its own log corrupt at index {at}: {message}"
    return Contradiction("", description[:EVIDENCE_LENGTH_MAX], corrupt_index=at)


def vouched_keys(trusted: Sequence[str], listed: ListedCheckpoint) -> tuple[str, ...]:
    """Return the trusted keys, and of those listed the ones that signed a checkpoint together with a trusted one."""
    try:
        opened(listed.checkpoint, trusted)
    except CheckpointInvalidError:
        return tuple(trusted)
    return _bounded((*trusted, *signing_keys(listed)))


def is_signed_by_others(note: str, keys: Sequence[str]) -> bool:
    """Tell whether a note carries more signatures than those of these keys: perhaps of one that they vouch for."""
    signatures = note.rpartition("\n\n")[2].count("\n")
    return signatures > sum(_has_signed(key, note) for key in keys)


def signing_keys(listed: ListedCheckpoint) -> tuple[str, ...]:
    """Return the listed keys that did sign the checkpoint."""
    return _bounded(key for key in listed.verifier_keys if _has_signed(key, listed.checkpoint))


def _bounded(keys: Iterable[str]) -> tuple[str, ...]:
    # Each once; the newest are the last.
    return tuple(dict.fromkeys(keys))[-KEYS_MAX:]


def _has_signed(key: str, note: str) -> bool:
    try:
        opened(note, [key])
    except CheckpointInvalidError:
        return False
    return True


def _contradiction(page: LogPage, description: str) -> Contradiction:
    return Contradiction(page.checkpoint[:EVIDENCE_LENGTH_MAX], description[:EVIDENCE_LENGTH_MAX])
