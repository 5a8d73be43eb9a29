"""What may follow what was witnessed of KeyVault's audit log, and which keys may say so."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.domain.custody import (
    EVIDENCE_LENGTH_MAX,
    KEYS_MAX,
    Contradiction,
    ListedCheckpoint,
    LogPage,
    WitnessedCheckpoint,
    corrupt_log,
    is_signed_by_others,
    judge,
    opened,
    signing_keys,
    vouched_keys,
)
from services.metering.tests.custody import ORIGIN, AuditLog, signer

KEYS = (signer().verifier_key,)


def held(log: AuditLog) -> WitnessedCheckpoint:
    """Return the log's newest checkpoint as it is witnessed."""
    return opened(log.checkpoint(), log.verifier_keys)


@given(witnessed=st.integers(0, 70), grown=st.integers(0, 70))
def test_a_log_that_grows_is_followed(witnessed: int, grown: int) -> None:
    """From every size to every size, an empty log and no growth among them."""
    log = AuditLog(witnessed)
    before = held(log)
    log.grow(grown)
    assert judge(before, log.page(witnessed), trusted_keys=KEYS) == held(log)


def _restored(log: AuditLog) -> None:
    log.restore(6)


def _forked_to_the_same_size(log: AuditLog) -> None:
    log.fork(6, to=9)


def _forked_and_grown(log: AuditLog) -> None:
    log.fork(6, to=20)


def _edited_at_the_tail(log: AuditLog) -> None:
    log.fork(8, to=9)
    log.grow(3)


@pytest.mark.parametrize("attack", [_restored, _forked_to_the_same_size, _forked_and_grown, _edited_at_the_tail])
def test_a_log_that_was_rolled_back_or_edited_contradicts(attack: Callable[[AuditLog], None]) -> None:
    """Its signatures are good, and without the checkpoint that is held it would be taken for the log."""
    log = AuditLog(9)
    before = held(log)
    attack(log)
    page = log.page(before.size)
    verdict = judge(before, page, trusted_keys=KEYS)
    assert isinstance(verdict, Contradiction)
    assert (verdict.checkpoint, "9" in verdict.description) == (page.checkpoint, True)
    assert judge(None, page, trusted_keys=KEYS) == held(log)


def test_a_rolled_back_log_that_denies_it_contradicts_all_the_same() -> None:
    """The witness does not need KeyVault to say that it is behind, and believes it when it does."""
    log = AuditLog(9)
    before = held(log)
    page = log.page(9)
    assert isinstance(judge(before, msgspec.structs.replace(page, is_behind=True), trusted_keys=KEYS), Contradiction)
    log.restore(6)
    silent = msgspec.structs.replace(log.page(9), is_behind=False)
    assert isinstance(judge(before, silent, trusted_keys=KEYS), Contradiction)


def test_a_proof_that_is_missing_or_of_another_size_proves_nothing() -> None:
    """The right log with no proof, or with somebody else's."""
    log = AuditLog(9)
    before = held(log)
    log.grow(4)
    page = log.page(9)
    for proof in ((), log.page(7).consistency_proof, page.consistency_proof[:-1], (bytes(32),)):
        verdict = judge(before, msgspec.structs.replace(page, consistency_proof=proof), trusted_keys=KEYS)
        assert isinstance(verdict, Contradiction)
    assert judge(before, page, trusted_keys=KEYS) == held(log)


def test_a_page_is_judged_by_what_was_held_when_it_was_asked_for() -> None:
    """Of two replicas that read at once the slower one finds a log that has only grown since its own question."""
    log = AuditLog(5)
    before = held(log)
    slow = log.page(5)
    log.grow(3)
    newer = judge(before, log.page(5), trusted_keys=KEYS)
    assert isinstance(newer, WitnessedCheckpoint)
    assert judge(before, slow, trusted_keys=KEYS) == before
    # Judged by what the faster one has witnessed meanwhile, an honest log would stop everything.
    assert isinstance(judge(newer, slow, trusted_keys=KEYS), Contradiction)


def test_another_logs_checkpoint_contradicts() -> None:
    """The key of another deployment is no better than a stranger's, also where both are trusted."""
    log, other = AuditLog(3), AuditLog(5, keys=(signer(2, origin="byok.keyvault/other"),))
    keys = (*KEYS, *other.verifier_keys)
    page = LogPage(checkpoint=other.checkpoint())
    assert isinstance(judge(held(log), page, trusted_keys=keys), Contradiction)
    assert judge(None, page, trusted_keys=keys) == held(other)


def test_a_checkpoint_without_a_trusted_signature_contradicts() -> None:
    """A stranger's key, a signature of other words, no note at all: whatever it says is not the log's."""
    log = AuditLog(3)
    before = held(log)
    forged = AuditLog(3, keys=(signer(2),))
    for note in (
        forged.checkpoint(),
        log.checkpoint().replace("\n3\n", "\n4\n"),
        log.checkpoint().replace(ORIGIN, "byok.keyvault/none"),
        "",
        "nonsense\x00",
    ):
        assert isinstance(judge(before, LogPage(checkpoint=note), trusted_keys=KEYS), Contradiction)
    assert isinstance(judge(None, LogPage(checkpoint=log.checkpoint()), trusted_keys=()), Contradiction)
    # The same words under the trusted key are the log's.
    assert judge(before, LogPage(checkpoint=log.checkpoint()), trusted_keys=KEYS) == before


def test_evidence_is_bounded() -> None:
    """What an enemy's KeyVault sends fits into the row."""
    note = "x" * (EVIDENCE_LENGTH_MAX + 1)
    verdict = judge(held(AuditLog(1)), LogPage(checkpoint=note), trusted_keys=KEYS)
    assert isinstance(verdict, Contradiction)
    assert len(verdict.checkpoint) == EVIDENCE_LENGTH_MAX
    assert len(corrupt_log(note, at=7).description) == EVIDENCE_LENGTH_MAX


def _listed(log: AuditLog, *, listing: AuditLog | None = None) -> ListedCheckpoint:
    return ListedCheckpoint(log.checkpoint(), (listing or log).verifier_keys)


def test_a_new_key_is_trusted_when_a_trusted_one_signs_beside_it() -> None:
    """A rotation: for a time both sign, then the new one alone, which is followed without a word from anybody."""
    old, new = signer(1), signer(2)
    both = AuditLog(4, keys=(old, new))
    keys = vouched_keys([old.verifier_key], _listed(both))
    assert keys == (old.verifier_key, new.verifier_key)
    alone = AuditLog(5, keys=(new,))
    assert judge(held(both), alone.page(4), trusted_keys=keys) == held(alone)


def test_a_signature_of_a_key_that_is_not_trusted_is_noticed() -> None:
    """Then, and only then, KeyVault is asked what keys there are."""
    old, new = signer(1), signer(2)
    both = AuditLog(4, keys=(old, new)).checkpoint()
    assert is_signed_by_others(both, [old.verifier_key])
    assert not is_signed_by_others(both, [old.verifier_key, new.verifier_key, signer(3).verifier_key])
    assert not is_signed_by_others(AuditLog(4, keys=(old,)).checkpoint(), [old.verifier_key])


def test_a_key_that_is_only_listed_is_not_trusted() -> None:
    """Neither one that has not signed, nor one that signs alone."""
    old, new = signer(1), signer(2)
    trusted = (old.verifier_key,)
    listing = AuditLog(keys=(old, new))
    assert vouched_keys(trusted, _listed(AuditLog(4, keys=(old,)), listing=listing)) == trusted
    assert vouched_keys(trusted, _listed(AuditLog(4, keys=(new,)), listing=listing)) == trusted
    assert signing_keys(_listed(AuditLog(4, keys=(old,)), listing=listing)) == trusted
    nonsense = ListedCheckpoint(AuditLog(4).checkpoint(), ("no key", *trusted, *trusted))
    assert signing_keys(nonsense) == trusted


def test_keys_do_not_pile_up() -> None:
    """Of more rotations than anybody makes, the newest keys are kept."""
    signers = tuple(signer(number) for number in range(KEYS_MAX + 3))
    log = AuditLog(1, keys=signers)
    keys = vouched_keys([signers[0].verifier_key], _listed(log))
    assert keys == log.verifier_keys[3:]
