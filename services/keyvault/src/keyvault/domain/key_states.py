"""What moves a provider key from one state to another: test calls, reported outcomes, time, and its owner.

States (cooling down is a time, not a state)::

    PENDING_VALIDATION ──valid──▶ ACTIVE ◀───valid, succeeded (2)─────── FAILING
            │                       │ └───inconclusive, rejected (1),──────▶ │
            │                       │      model gone (3)                    │
            ├──rejected────────────▶├──rejected──────▶ INVALID ◀─────────────┤ rejected, rejected again (1)
            └──no credit───────────▶└──no credit─────▶ NO_CREDIT ◀───────────┘ no credit

    INVALID, NO_CREDIT ──valid──▶ ACTIVE             any but REVOKED ──secret replaced──▶ PENDING_VALIDATION
    any but REVOKED ──its time has come──▶ EXPIRED ──secret replaced, later time──▶ PENDING_VALIDATION
    any ──revoked──▶ REVOKED, from which nothing leads

ACTIVE and FAILING are leased for operations; every state but REVOKED is leased for validation. Test calls speak of any
state; outcomes of provider calls only of a key that is leased for operations, because a call that is reported later was
made on a lease of before. What was found of an earlier secret, or before the key was last found to work, says nothing.

1. A vendor's fault can reject every key for a minute, and a key that was leaked and rotated is rejected for good. The
   first rejection makes a key FAILING, and due for a test call; it is INVALID when that says so, or when calls are
   still rejected after `rejection_grace` without one success in between. Until then it is leased, which costs a refused
   call each time; the other way round, a fault of a minute would take every key out of use until it is tested again.
2. A success ends FAILING when the key has been in it for `settle`: a key that both fails and works changes its state,
   and with it ends cached leases, twice in that time at most.
3. `models_gone_max` calls one after the other, seen by one replica, for models that the key cannot use.

INVALID and NO_CREDIT find back without their owner: test calls are asked for, first soon and then less and less often.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from keyvault.domain.provider_keys import LEASED_STATES, KeyState, Operation, Outcome, ProviderKey, Verdict

PENDING_REASON: Final = "Not validated yet."
EXPIRED_REASON: Final = "Its expire time has passed. Replace its secret, or give it a later time."
INVALID_REASON: Final = "The provider rejects the key. Replace its secret."
STATE_BEFORE: Final = "state_before"
"""Detail of an audit entry: the state that the key left. An entry without it changed a cool-down, or what is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoolDowns:
    """How long a key rests when the provider does not say, and the longest that it is believed."""

    rate_limited: timedelta = timedelta(seconds=5)
    quota_exhausted: timedelta = timedelta(minutes=15)
    longest: timedelta = timedelta(hours=24)
    step: timedelta = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRules:
    """How much it takes to move a key by the outcomes of its calls; the notes at the top say what for."""

    rejection_grace: timedelta = timedelta(seconds=60)
    settle: timedelta = timedelta(seconds=30)
    models_gone_max: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """What a test call found, for one version of a key."""

    key_version: int
    verdict: Verdict
    explanation: str
    models: tuple[str, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """How one provider call ended, when, and how many in a row found no such model."""

    outcome: Outcome
    at: datetime
    models_gone: int = 0


@dataclass(slots=True)
class ModelsGone:
    """Counts, for each version of a key, how many calls in a row found that it cannot use the model.

    It is kept in memory, of the last keys only: it takes a few calls to count again, and no audit entry to count.
    """

    keys_max: int = 4096
    _counts: dict[tuple[str, int], int] = field(default_factory=dict)

    def count(self, provider_key_id: str, key_version: int, outcome: Outcome) -> int:
        """Take one outcome, and return how many in a row there are now."""
        name = (provider_key_id, key_version)
        if outcome is Outcome.SUCCEEDED:
            self._counts.pop(name, None)
            return 0
        before = self._counts.pop(name, 0)
        if outcome is Outcome.MODEL_UNAVAILABLE:
            before += 1
        if before:
            if len(self._counts) >= self.keys_max:
                del self._counts[next(iter(self._counts))]
            self._counts[name] = before
        return before


def in_state(key: ProviderKey, state: KeyState, reason: str, now: datetime) -> ProviderKey:
    """Return the key in `state`, and since when if it was in another."""
    return replace(
        key,
        state=state,
        state_reason=reason,
        state_time=key.state_time if state is key.state else now,
        rejected_time=key.rejected_time if state is KeyState.FAILING else None,
        update_time=now,
    )


def after_validation(key: ProviderKey, report: ValidationReport, now: datetime) -> ProviderKey:
    """Return the key after a test call; a report on an older secret changes nothing.

    Raises:
        ProviderKeyRevokedError: the key is revoked.
    """
    key.ensure_not_revoked()
    if report.key_version != key.key_version:
        return key
    state, reason = _after_verdict(key, report, now)
    is_valid = report.verdict is Verdict.VALID
    return replace(
        in_state(key, state, reason, now),
        cool_down_until=None if is_valid else key.cool_down_until,
        validated_models=report.models if is_valid else key.validated_models,
        validated_operations=report.operations if is_valid else key.validated_operations,
        validate_time=now,
    )


def after_outcome(key: ProviderKey, call: CallOutcome, *, now: datetime, rules: HealthRules) -> ProviderKey:
    """Return the key after one provider call, but for its cool-down; the same key when the call says nothing of it."""
    if key.state not in LEASED_STATES or key.is_expired(now) or _is_outdated(key, call):
        return key
    if call.outcome is Outcome.SUCCEEDED:
        return _after_success(key, call, now, rules)
    if call.outcome is Outcome.KEY_REJECTED:
        return _after_rejection(key, call, now, rules)
    if call.outcome is Outcome.NO_CREDIT:
        return in_state(key, KeyState.NO_CREDIT, _NO_CREDIT_REASON, now)
    is_gone = call.outcome is Outcome.MODEL_UNAVAILABLE and call.models_gone >= rules.models_gone_max
    if is_gone and key.state is KeyState.ACTIVE and _has_settled(key, call, rules):
        return in_state(key, KeyState.FAILING, _MODELS_GONE_REASON, now)
    return key


def after_cool_down(key: ProviderKey, rest: timedelta | None, now: datetime) -> ProviderKey:
    """Return the key resting for `rest` from `now`; the same key when it must not, or is not leased anyway."""
    if rest is None or key.state not in LEASED_STATES:
        return key
    return replace(key, cool_down_until=now + rest, update_time=now)


def after_expiry(key: ProviderKey, now: datetime) -> ProviderKey:
    """Return the key, EXPIRED when its time has come; the same key when not, or when nothing leads there."""
    if key.state in (KeyState.EXPIRED, KeyState.REVOKED) or not key.is_expired(now):
        return key
    return in_state(key, KeyState.EXPIRED, EXPIRED_REASON, now)


def with_expire_time(key: ProviderKey, expire_time: datetime | None, now: datetime) -> ProviderKey:
    """Return the key with another time to end; one whose time had come must be validated again."""
    was_expired = key.is_expired(now)
    key = replace(key, expire_time=expire_time, update_time=now)
    return in_state(key, KeyState.PENDING_VALIDATION, PENDING_REASON, now) if was_expired else key


def with_new_secret(key: ProviderKey, now: datetime) -> ProviderKey:
    """Return the next version of the key, of which nothing is known; a time that has passed was the old secret's."""
    return replace(
        in_state(key, KeyState.PENDING_VALIDATION, PENDING_REASON, now),
        key_version=key.key_version + 1,
        state_time=now,
        cool_down_until=None,
        validated_models=(),
        validated_operations=(),
        validate_time=None,
        expire_time=None if key.is_expired(now) else key.expire_time,
    )


def state_details(before: ProviderKey, after: ProviderKey) -> tuple[tuple[str, str], ...]:
    """Return what an audit entry says of the change of state, if there is one."""
    return () if before.state is after.state else ((STATE_BEFORE, before.state.name),)


def rest_after(
    key: ProviderKey,
    outcome: Outcome,
    *,
    retry_after: timedelta | None,
    age: timedelta,
    now: datetime,
    rules: CoolDowns,
) -> timedelta | None:
    """Return how long the key must rest from `now`, or None when the outcome asks for no longer rest than it has.

    A provider that is never believed beyond `rules.longest` cannot put a key out of use, and a step below which a
    longer rest is not worth an audit entry keeps a storm of throttled calls from filling the log.
    """
    default = {Outcome.RATE_LIMITED: rules.rate_limited, Outcome.QUOTA_EXHAUSTED: rules.quota_exhausted}.get(outcome)
    if default is None:
        return None
    rest = min(retry_after if retry_after is not None else default, rules.longest) - age
    if rest <= timedelta(0):
        return None
    if key.cool_down_until is not None and now + rest < key.cool_down_until + rules.step:
        return None
    return rest


def _after_verdict(key: ProviderKey, report: ValidationReport, now: datetime) -> tuple[KeyState, str]:
    if key.is_expired(now):
        # A test call is allowed, and its models are worth knowing; what its owner said of its end stands.
        return key.state, key.state_reason
    if report.verdict is not Verdict.INCONCLUSIVE:
        return _VERDICT_STATES[report.verdict], report.explanation
    if key.state is KeyState.ACTIVE:
        return KeyState.FAILING, report.explanation
    is_known = key.state in (KeyState.INVALID, KeyState.NO_CREDIT)
    return key.state, key.state_reason if is_known else report.explanation


def _after_success(key: ProviderKey, call: CallOutcome, now: datetime, rules: HealthRules) -> ProviderKey:
    if key.state is KeyState.FAILING and _has_settled(key, call, rules):
        return in_state(key, KeyState.ACTIVE, "", now)
    return key


def _after_rejection(key: ProviderKey, call: CallOutcome, now: datetime, rules: HealthRules) -> ProviderKey:
    if key.state is KeyState.ACTIVE or key.rejected_time is None:
        return replace(in_state(key, KeyState.FAILING, _REJECTED_REASON, now), rejected_time=call.at)
    if call.at - key.rejected_time >= rules.rejection_grace:
        return in_state(key, KeyState.INVALID, INVALID_REASON, now)
    return key


def _is_outdated(key: ProviderKey, call: CallOutcome) -> bool:
    """Return whether the call ended before the key, ACTIVE now, was found to work."""
    found = key.validate_time if key.state is KeyState.ACTIVE else None
    return found is not None and call.at <= found


def _has_settled(key: ProviderKey, call: CallOutcome, rules: HealthRules) -> bool:
    return key.state_time is None or call.at - key.state_time >= rules.settle


_VERDICT_STATES: Final = {
    Verdict.VALID: KeyState.ACTIVE,
    Verdict.REJECTED: KeyState.INVALID,
    Verdict.NO_CREDIT: KeyState.NO_CREDIT,
}
_REJECTED_REASON: Final = "The provider rejected the key. It is tested again shortly."
_MODELS_GONE_REASON: Final = "The provider says that the key cannot use the models of its mapping. Change the mapping."
_NO_CREDIT_REASON: Final = "The provider says that the account has no credit. Top it up, then validate."
