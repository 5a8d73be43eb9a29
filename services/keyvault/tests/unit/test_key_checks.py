"""When keys are due for a test call, and when their owners are told that they expire."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvault.domain.key_checks import CheckRules, KeyCheck, due_notice, plan_check
from keyvault.domain.provider_keys import KeyState
from services.keyvault.tests.unit.builders import NOW, stored_key

RULES = CheckRules()
DAY = timedelta(days=1)
FIRSTS = {
    KeyState.PENDING_VALIDATION: RULES.pending,
    KeyState.ACTIVE: RULES.working,
    KeyState.FAILING: RULES.failing,
    KeyState.NO_CREDIT: RULES.no_credit,
    KeyState.INVALID: RULES.invalid,
}


def plan(before: KeyCheck | None = None, *, drawn: float = 0.5, **changes: Any) -> KeyCheck:
    """Return the plan for a key."""
    planned = plan_check(before, stored_key(**changes), rules=RULES, drawn=drawn)
    assert planned is not None
    return planned


@pytest.mark.parametrize("state", KeyState)
def test_every_state_is_tested_in_its_own_time(state: KeyState) -> None:
    """What does not work soon, what works daily, what has expired not by itself, what is revoked never."""
    if state is KeyState.REVOKED:
        assert plan_check(None, stored_key(state=state), rules=RULES, drawn=0.5) is None
        return
    expected = NOW + DAY + FIRSTS[state] if state in FIRSTS else None
    assert plan(state=state, state_time=NOW + DAY).next_check_time == expected


@given(state=st.sampled_from(list(FIRSTS)), attempts=st.integers(0, 10_000), drawn=st.floats(0, 1))
def test_whatever_was_tried_a_key_is_due_within_a_day(state: KeyState, attempts: int, drawn: float) -> None:
    """Less and less often, with some chance, and never beyond the longest interval."""
    before = replace(plan(state=state), attempts=attempts)
    due = plan(before, drawn=drawn, state=state).next_check_time
    assert due is not None
    assert FIRSTS[state] * 0.9 <= due - NOW <= RULES.longest * 1.1
    if state is not KeyState.ACTIVE and attempts:
        assert due - NOW >= min(FIRSTS[state] * 2, RULES.longest) * 0.9


def test_keys_that_came_together_do_not_stay_together() -> None:
    """The time is moved by up to a tenth, to either side."""
    times = [plan(state=KeyState.ACTIVE, drawn=drawn).next_check_time for drawn in (0, 0.5, 1)]
    assert times == [NOW + 0.9 * DAY, NOW + DAY, NOW + 1.1 * DAY]


def test_a_test_call_counts_from_when_it_was_made() -> None:
    """Whoever asked for it."""
    assert plan(state=KeyState.ACTIVE, validate_time=NOW + DAY).next_check_time == NOW + 2 * DAY


def test_what_was_tried_in_another_state_does_not_count() -> None:
    """Nor on another secret; a change of something else leaves the count."""
    before = replace(plan(state=KeyState.INVALID), attempts=5)
    assert plan(before, state=KeyState.INVALID, label="other").attempts == 5
    assert plan(before, state=KeyState.FAILING).attempts == 0
    assert plan(before, state=KeyState.INVALID, key_version=2).attempts == 0


def test_a_key_that_has_expired_expires_no_more() -> None:
    """It is on the list until its state says so."""
    key = plan(expire_time=NOW + 20 * DAY)
    assert (key.expire_time, key.next_notice_time) == (NOW + 20 * DAY, NOW + 6 * DAY)
    expired = plan(expire_time=NOW, state=KeyState.EXPIRED)
    assert (expired.expire_time, expired.next_notice_time, expired.next_check_time) == (None, None, None)


@pytest.mark.parametrize(
    ("left", "threshold", "next_left"),
    [
        (15 * DAY, None, None),
        (14 * DAY, 14 * DAY, DAY),
        (2 * DAY, 14 * DAY, DAY),
        (DAY, DAY, None),
        (timedelta(seconds=1), DAY, None),
        (timedelta(0), None, None),
    ],
)
def test_the_nearest_threshold_alone_is_noticed(
    left: timedelta, threshold: timedelta | None, next_left: timedelta | None
) -> None:
    """A key that is given a day to live, or a worker that was down for weeks, makes one notice and not all of them."""
    expire_time = NOW + left
    notice = due_notice(expire_time, NOW, RULES)
    if threshold is None:
        assert notice is None
        return
    assert notice is not None
    assert notice.threshold == threshold
    assert notice.next_notice_time == (None if next_left is None else expire_time - next_left)
