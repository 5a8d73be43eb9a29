"""What moves a provider key from one state to another."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvault.domain.errors import ProviderKeyRevokedError
from keyvault.domain.key_states import (
    STATE_BEFORE,
    CallOutcome,
    CoolDowns,
    HealthRules,
    ModelsGone,
    ValidationReport,
    after_cool_down,
    after_expiry,
    after_outcome,
    after_validation,
    in_state,
    rest_after,
    state_details,
    with_expire_time,
    with_new_secret,
)
from keyvault.domain.provider_keys import LEASED_STATES, KeyState, Operation, Outcome, ProviderKey, Verdict
from services.keyvault.tests.unit.builders import NOW, provider_key

COOL_DOWNS = CoolDowns()
RULES = HealthRules()
SECOND = timedelta(seconds=1)
STATES = [state for state in KeyState if state is not KeyState.REVOKED]
TESTED_STATES = [state for state in STATES if state is not KeyState.EXPIRED]


def report(verdict: Verdict, key_version: int = 1) -> ValidationReport:
    """Return a report of a test call."""
    return ValidationReport(
        key_version=key_version, verdict=verdict, explanation="why", models=("m",), operations=(Operation.CHAT,)
    )


def call(outcome: Outcome, *, at: datetime = NOW, models_gone: int = 0) -> CallOutcome:
    """Return how a call ended."""
    return CallOutcome(outcome=outcome, at=at, models_gone=models_gone)


def after(key: ProviderKey, outcome: Outcome, *, at: datetime = NOW, models_gone: int = 0) -> ProviderKey:
    """Return a key after a call that is reported as it ends."""
    return after_outcome(key, call(outcome, at=at, models_gone=models_gone), now=at, rules=RULES)


@pytest.mark.parametrize(("state", "verdict"), list(product(TESTED_STATES, Verdict)))
def test_validation_moves_every_state_as_drawn(state: KeyState, verdict: Verdict) -> None:
    """VALID, REJECTED and NO_CREDIT decide; INCONCLUSIVE makes a working key FAILING, and says nothing of others."""
    expected = {
        Verdict.VALID: KeyState.ACTIVE,
        Verdict.REJECTED: KeyState.INVALID,
        Verdict.NO_CREDIT: KeyState.NO_CREDIT,
        Verdict.INCONCLUSIVE: KeyState.FAILING if state is KeyState.ACTIVE else state,
    }[verdict]
    is_kept = verdict is Verdict.INCONCLUSIVE and state in (KeyState.INVALID, KeyState.NO_CREDIT)
    key = after_validation(provider_key(state=state, state_reason="before"), report(verdict), NOW)
    assert (key.state, key.state_reason) == (expected, "before" if is_kept else "why")
    assert key.validate_time == NOW
    assert key.validated_models == (("m",) if verdict is Verdict.VALID else ())
    assert key.state_time == (None if expected is state else NOW)


def test_a_test_call_that_works_ends_the_rest_and_the_suspicion() -> None:
    """What was held against the key before is over."""
    key = provider_key(state=KeyState.FAILING, rejected_time=NOW, cool_down_until=NOW + SECOND)
    valid = after_validation(key, report(Verdict.VALID), NOW)
    assert (valid.rejected_time, valid.cool_down_until) == (None, None)


@pytest.mark.parametrize("verdict", Verdict)
def test_no_test_call_brings_an_expired_key_back(verdict: Verdict) -> None:
    """What its owner said of its end stands, also in the seconds before the state says so."""
    expired = in_state(provider_key(expire_time=NOW), KeyState.EXPIRED, "over", NOW)
    for key in (expired, provider_key(expire_time=NOW)):
        tested = after_validation(key, report(verdict), NOW)
        assert (tested.state, tested.state_reason) == (key.state, key.state_reason)
        assert tested.is_expired(NOW)


def test_a_report_on_an_earlier_secret_changes_nothing() -> None:
    """A late rejection of an old version never changes the new one's state."""
    key = provider_key(key_version=2)
    assert after_validation(key, report(Verdict.REJECTED, key_version=1), NOW) is key


def test_a_revoked_key_is_not_validated() -> None:
    """From REVOKED nothing leads."""
    with pytest.raises(ProviderKeyRevokedError):
        after_validation(provider_key(state=KeyState.REVOKED), report(Verdict.VALID), NOW)


@pytest.mark.parametrize(("state", "outcome"), list(product(KeyState, Outcome)))
def test_outcomes_move_every_state_as_drawn(state: KeyState, outcome: Outcome) -> None:
    """Outcomes speak of keys that are leased for operations: one of each kind, on a key that is long in its state."""
    moves = {
        (KeyState.ACTIVE, Outcome.KEY_REJECTED): KeyState.FAILING,
        (KeyState.ACTIVE, Outcome.NO_CREDIT): KeyState.NO_CREDIT,
        (KeyState.ACTIVE, Outcome.MODEL_UNAVAILABLE): KeyState.FAILING,
        (KeyState.FAILING, Outcome.SUCCEEDED): KeyState.ACTIVE,
        (KeyState.FAILING, Outcome.NO_CREDIT): KeyState.NO_CREDIT,
    }
    key = after(provider_key(state=state), outcome, models_gone=RULES.models_gone_max)
    assert key.state is moves.get((state, outcome), state)
    if state not in LEASED_STATES:
        assert key == provider_key(state=state)


@pytest.mark.parametrize(
    ("seconds", "succeeded_at", "state"),
    [
        (59, None, KeyState.FAILING),
        (60, None, KeyState.INVALID),
        (3600, None, KeyState.INVALID),
        (60, 29, KeyState.INVALID),
        (60, 30, KeyState.FAILING),
    ],
)
def test_a_key_is_invalid_when_it_is_rejected_for_long(seconds: int, succeeded_at: int | None, state: KeyState) -> None:
    """No fault of a minute makes a key INVALID; a key that is gone is, and a success in between starts anew."""
    key = after(provider_key(), Outcome.KEY_REJECTED)
    assert (key.state, key.rejected_time, key.state_time) == (KeyState.FAILING, NOW, NOW)
    if succeeded_at is not None:
        key = after(key, Outcome.SUCCEEDED, at=NOW + succeeded_at * SECOND)
    assert after(key, Outcome.KEY_REJECTED, at=NOW + seconds * SECOND).state is state


def test_a_rejection_of_a_key_that_fails_otherwise_is_a_first_one() -> None:
    """However long it has failed for another reason."""
    key = provider_key(state=KeyState.FAILING, state_time=NOW - timedelta(days=1))
    rejected = after(key, Outcome.KEY_REJECTED)
    assert (rejected.state, rejected.rejected_time, rejected.state_time) == (KeyState.FAILING, NOW, key.state_time)


def test_what_ended_before_the_key_was_found_to_work_says_nothing() -> None:
    """A rejection that is reported late does not spoil what a test call found meanwhile."""
    key = provider_key(validate_time=NOW)
    for outcome in (Outcome.KEY_REJECTED, Outcome.NO_CREDIT):
        assert after_outcome(key, call(outcome, at=NOW - SECOND), now=NOW + SECOND, rules=RULES) is key
        assert after(key, outcome, at=NOW + SECOND) != key


def test_a_key_that_flaps_is_not_written_with_every_call() -> None:
    """A key of which one model is gone and another works changes its state at most twice in `settle`."""
    key, changes = provider_key(), 0
    for step in range(600):
        at = NOW + step * timedelta(milliseconds=100)
        outcome = Outcome.MODEL_UNAVAILABLE if step % 2 else Outcome.SUCCEEDED
        changed = after(key, outcome, at=at, models_gone=RULES.models_gone_max)
        changes += changed is not key
        key = changed
    assert 1 <= changes <= 4


def test_models_gone_are_counted_in_a_row() -> None:
    """A success starts the count anew, other outcomes leave it, and only the last keys are remembered."""
    gone = ModelsGone(keys_max=2)
    kinds = [Outcome.MODEL_UNAVAILABLE, Outcome.NO_ANSWER, Outcome.MODEL_UNAVAILABLE, Outcome.SUCCEEDED]
    assert [gone.count("a", 1, kind) for kind in kinds] == [1, 1, 2, 0]
    assert gone.count("a", 1, Outcome.MODEL_UNAVAILABLE) == 1
    assert gone.count("a", 2, Outcome.MODEL_UNAVAILABLE) == 1
    assert gone.count("b", 1, Outcome.MODEL_UNAVAILABLE) == 1
    assert gone.count("a", 1, Outcome.MODEL_UNAVAILABLE) == 1


@pytest.mark.parametrize("state", KeyState)
def test_a_key_expires_when_its_time_has_come(state: KeyState) -> None:
    """Not a moment before, and not twice; a revoked key stays so."""
    key = provider_key(state=state, expire_time=NOW)
    assert after_expiry(key, NOW - timedelta(microseconds=1)) is key
    expired = after_expiry(key, NOW)
    if state in (KeyState.EXPIRED, KeyState.REVOKED):
        assert expired is key
    else:
        assert (expired.state, expired.state_time) == (KeyState.EXPIRED, NOW)
        assert after_expiry(expired, NOW + SECOND) is expired


def test_an_expired_key_comes_back_by_its_owner_alone() -> None:
    """A later time, no time or another secret make it PENDING_VALIDATION; the passed time was the old secret's."""
    expired = after_expiry(provider_key(expire_time=NOW), NOW)
    for key in (expired, provider_key(expire_time=NOW)):
        for later in (NOW + SECOND, None):
            renewed = with_expire_time(key, later, NOW)
            assert (renewed.state, renewed.expire_time) == (KeyState.PENDING_VALIDATION, later)
            assert not renewed.is_expired(NOW)
        replaced = with_new_secret(key, NOW)
        assert (replaced.state, replaced.expire_time) == (KeyState.PENDING_VALIDATION, None)
    kept = with_new_secret(provider_key(expire_time=NOW + SECOND), NOW)
    assert kept.expire_time == NOW + SECOND
    assert with_expire_time(provider_key(), NOW + SECOND, NOW).state is KeyState.ACTIVE


def test_an_entry_tells_a_change_of_state_from_one_of_a_cool_down() -> None:
    """Whoever reads the log tells the two apart by one detail."""
    key = provider_key()
    assert state_details(key, after(key, Outcome.NO_CREDIT)) == ((STATE_BEFORE, "ACTIVE"),)
    assert state_details(key, after_cool_down(key, SECOND, NOW)) == ()


CALLS = st.tuples(st.sampled_from(Outcome), st.integers(0, 90), st.integers(0, 4))
STEPS = st.one_of(CALLS, st.sampled_from(Verdict), st.sampled_from(["expire", "replace", "renew"]))


@given(steps=st.lists(STEPS, max_size=30))
def test_whatever_happens_a_key_finds_back(steps: list[object]) -> None:
    """After any history one test call that works makes a key ACTIVE, unless its time has come; then its owner must."""
    key, now = provider_key(), NOW
    for step in steps:
        now += 10 * SECOND
        if isinstance(step, tuple):
            outcome, age, models_gone = step
            ended = call(outcome, at=now - age * SECOND, models_gone=models_gone)
            key = after_outcome(key, ended, now=now, rules=RULES)
        elif isinstance(step, Verdict):
            key = after_validation(key, report(step, key.key_version), now)
        elif step == "expire":
            key = after_expiry(replace(key, expire_time=now), now)
        elif step == "renew":
            key = with_expire_time(key, None, now)
        else:
            key = with_new_secret(key, now)
        assert (key.rejected_time is None) or key.state is KeyState.FAILING
        assert (key.state is KeyState.EXPIRED) == key.is_expired(now)
    key = with_expire_time(key, None, now) if key.is_expired(now) else key
    assert after_validation(key, report(Verdict.VALID, key.key_version), now).state is KeyState.ACTIVE


@pytest.mark.parametrize(
    ("outcome", "retry_after", "age", "rest"),
    [
        (Outcome.RATE_LIMITED, None, 0, COOL_DOWNS.rate_limited),
        (Outcome.RATE_LIMITED, 30, 10, timedelta(seconds=20)),
        (Outcome.RATE_LIMITED, 30, 31, None),
        (Outcome.RATE_LIMITED, 0, 0, None),
        (Outcome.QUOTA_EXHAUSTED, None, 0, COOL_DOWNS.quota_exhausted),
        (Outcome.QUOTA_EXHAUSTED, 10**6, 0, COOL_DOWNS.longest),
        (Outcome.SUCCEEDED, 30, 0, None),
        (Outcome.PROVIDER_UNAVAILABLE, 30, 0, None),
    ],
)
def test_only_throttling_makes_a_key_rest(
    outcome: Outcome, retry_after: int | None, age: int, rest: timedelta | None
) -> None:
    """The provider is believed up to a day, counted from when the call ended."""
    asked = None if retry_after is None else timedelta(seconds=retry_after)
    found = rest_after(
        provider_key(), outcome, retry_after=asked, age=timedelta(seconds=age), now=NOW, rules=COOL_DOWNS
    )
    assert found == rest


def test_a_rest_that_hardly_grows_is_not_written() -> None:
    """A storm of throttled calls does not fill the log."""
    key = provider_key(cool_down_until=NOW + timedelta(seconds=10))
    for seconds, is_longer in ((10, False), (10.9, False), (11, True)):
        rest = rest_after(
            key,
            Outcome.RATE_LIMITED,
            retry_after=timedelta(seconds=seconds),
            age=timedelta(0),
            now=NOW,
            rules=COOL_DOWNS,
        )
        assert (rest is not None) is is_longer


def test_what_is_not_leased_does_not_rest() -> None:
    """A cool-down of a key that is out of use would be an entry that tells nothing."""
    for state in KeyState:
        key = provider_key(state=state)
        assert (after_cool_down(key, SECOND, NOW) is key) == (state not in LEASED_STATES)
    assert after_cool_down(provider_key(), None, NOW) == provider_key()
