"""The states of a provider key, and its canonical record."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta
from itertools import product
from typing import Any

import pytest

from keyvault.domain.canonical import CanonicalFormError, FieldReader, encode_fields
from keyvault.domain.errors import EtagMismatchError, ProviderKeyRevokedError
from keyvault.domain.provider_keys import (
    RECORD_LABEL,
    CoolDowns,
    Custody,
    KeyState,
    Operation,
    OperationRoute,
    Outcome,
    ProviderKey,
    ValidationReport,
    Verdict,
    after_outcome,
    after_validation,
    decode_key,
    encode_key,
    rest_after,
)
from services.keyvault.tests.unit.builders import NOW, agent_holder, provider_key, stored_key

RULES = CoolDowns()
STATES = [state for state in KeyState if state is not KeyState.REVOKED]
FULL = provider_key(
    holder=agent_holder(),
    mapping=(
        OperationRoute(
            operation=Operation.EMBEDDING_GENERATION,
            model="m",
            tier="t",
            capabilities=("embedding", "vision"),
            features=("server_tools",),
            context_window_tokens=8192,
            dimensions=1024,
        ),
        OperationRoute(operation=Operation.CHAT, model="n"),
    ),
    custody=Custody.STRICT,
    state_reason="ünder test",
    cool_down_until=NOW + timedelta(seconds=1, microseconds=5),
    validated_models=("a", "b"),
    validated_operations=(Operation.CHAT,),
    validate_time=NOW,
)
OTHER_VALUES: dict[str, Any] = {
    "provider_key_id": "other",
    "holder": agent_holder("agent-2"),
    "provider": "openai",
    "base_url": "https://api.openai.com",
    "label": "other",
    "priority": 1,
    "mapping": (),
    "custody": Custody.CACHED,
    "state": KeyState.FAILING,
    "state_reason": "other",
    "cool_down_until": None,
    "key_version": 2,
    "fingerprint": "other",
    "secret_suffix": "othe",
    "validated_models": ("a",),
    "validated_operations": (),
    "create_time": NOW - timedelta(days=1),
    "update_time": NOW + timedelta(days=1),
    "validate_time": None,
}


def report(verdict: Verdict, key_version: int = 1) -> ValidationReport:
    """Return a report of a test call."""
    return ValidationReport(
        key_version=key_version, verdict=verdict, explanation="why", models=("m",), operations=(Operation.CHAT,)
    )


@pytest.mark.parametrize("key", [provider_key(), FULL])
def test_a_record_comes_back(key: ProviderKey) -> None:
    """Decoding the canonical record gives the key."""
    assert decode_key(encode_key(key)) == key


@pytest.mark.parametrize("name", [field.name for field in fields(ProviderKey)])
def test_every_field_is_in_the_record(name: str) -> None:
    """No field can be changed without changing what the HMAC covers."""
    assert encode_key(replace(FULL, **{name: OTHER_VALUES[name]})) != encode_key(FULL)


@pytest.mark.parametrize("drop", [0, 1])
def test_a_record_with_other_fields_is_refused(drop: int) -> None:
    """Too few fields, or too many, are not read."""
    read = FieldReader(RECORD_LABEL, encode_key(FULL))
    record = read.rest()
    changed = record[:-1] if drop else [*record, b""]
    with pytest.raises(CanonicalFormError):
        decode_key(encode_fields(RECORD_LABEL, changed))


@pytest.mark.parametrize(
    ("state", "verdict"),
    list(product(STATES, Verdict)),
)
def test_validation_moves_every_state_as_drawn(state: KeyState, verdict: Verdict) -> None:
    """VALID, REJECTED and NO_CREDIT decide; INCONCLUSIVE makes a working key FAILING, and says nothing of others."""
    expected = {
        Verdict.VALID: KeyState.ACTIVE,
        Verdict.REJECTED: KeyState.INVALID,
        Verdict.NO_CREDIT: KeyState.NO_CREDIT,
        Verdict.INCONCLUSIVE: KeyState.FAILING if state is KeyState.ACTIVE else state,
    }[verdict]
    after = after_validation(provider_key(state=state), report(verdict), NOW)
    assert (after.state, after.state_reason, after.validate_time) == (expected, "why", NOW)
    assert after.validated_models == (("m",) if verdict is Verdict.VALID else ())


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
    """Only a rejected key and missing credit spoil a key, and a success mends FAILING alone."""
    expected = state
    if state is not KeyState.REVOKED:
        expected = {Outcome.KEY_REJECTED: KeyState.INVALID, Outcome.NO_CREDIT: KeyState.NO_CREDIT}.get(outcome, state)
        if (state, outcome) == (KeyState.FAILING, Outcome.SUCCEEDED):
            expected = KeyState.ACTIVE
    assert after_outcome(provider_key(state=state), outcome, rest=None, now=NOW).state is expected


@pytest.mark.parametrize(
    ("outcome", "retry_after", "age", "rest"),
    [
        (Outcome.RATE_LIMITED, None, 0, RULES.rate_limited),
        (Outcome.RATE_LIMITED, 30, 10, timedelta(seconds=20)),
        (Outcome.RATE_LIMITED, 30, 31, None),
        (Outcome.RATE_LIMITED, 0, 0, None),
        (Outcome.QUOTA_EXHAUSTED, None, 0, RULES.quota_exhausted),
        (Outcome.QUOTA_EXHAUSTED, 10**6, 0, RULES.longest),
        (Outcome.SUCCEEDED, 30, 0, None),
        (Outcome.PROVIDER_UNAVAILABLE, 30, 0, None),
    ],
)
def test_only_throttling_makes_a_key_rest(
    outcome: Outcome, retry_after: int | None, age: int, rest: timedelta | None
) -> None:
    """The provider is believed up to a day, counted from when the call ended."""
    asked = None if retry_after is None else timedelta(seconds=retry_after)
    found = rest_after(provider_key(), outcome, retry_after=asked, age=timedelta(seconds=age), now=NOW, rules=RULES)
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
            rules=RULES,
        )
        assert (rest is not None) is is_longer


def test_an_etag_guards_an_update() -> None:
    """An etag of an earlier state is refused; an empty one overwrites."""
    stored = stored_key(audit_index=17)
    stored.ensure_etag(stored.etag)
    stored.ensure_etag("")
    with pytest.raises(EtagMismatchError):
        stored.ensure_etag(stored_key(audit_index=18).etag)
