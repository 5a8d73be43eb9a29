"""When a key is due for a test call, and when its owner is told that it will expire. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.provider_keys import KeyState

if TYPE_CHECKING:
    from keyvault.domain.provider_keys import ProviderKey, StoredKey

_DOUBLINGS_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRules:
    """How long after it came into its state, or was last tested, a key is tested again.

    What does not work is tested soon, and after each test that left it as it was in twice the time. A key is tested a
    little earlier or later than that, so that keys that came together do not stay together.
    """

    working: timedelta = timedelta(days=1)
    failing: timedelta = timedelta(seconds=30)
    invalid: timedelta = timedelta(minutes=1)
    no_credit: timedelta = timedelta(minutes=5)
    pending: timedelta = timedelta(minutes=3)
    longest: timedelta = timedelta(days=1)
    jitter: float = 0.1
    notices: tuple[timedelta, ...] = (timedelta(days=14), timedelta(days=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCheck:
    """What is planned for a key, and the authority row that it was planned by."""

    provider_key_id: str
    planned_index: int
    provider: str
    state: KeyState
    key_version: int
    attempts: int
    validate_time: datetime | None
    next_check_time: datetime | None
    expire_time: datetime | None
    next_notice_time: datetime | None


@dataclass(frozen=True, slots=True)
class ExpiryNotice:
    """That a key expires within a threshold, and when the next notice is due."""

    expire_time: datetime
    threshold: timedelta
    next_notice_time: datetime | None


def plan_check(before: KeyCheck | None, stored: StoredKey, *, rules: CheckRules, drawn: float) -> KeyCheck | None:
    """Return what is to be planned for a key, or None for a key that is over; `drawn` is at random from 0 to 1.

    What was tried in another state, or on another secret, does not count against the present one.
    """
    key = stored.key
    if key.state is KeyState.REVOKED:
        return None
    is_same = before is not None and (before.state, before.key_version) == (key.state, key.key_version)
    attempts = before.attempts if before is not None and is_same else 0
    is_to_expire = key.expire_time is not None and key.state is not KeyState.EXPIRED
    expire_time = key.expire_time if is_to_expire else None
    return KeyCheck(
        provider_key_id=key.provider_key_id,
        planned_index=stored.seal.audit_index,
        provider=key.provider,
        state=key.state,
        key_version=key.key_version,
        attempts=attempts,
        validate_time=key.validate_time,
        next_check_time=_next_check(key, attempts, rules, drawn),
        expire_time=expire_time,
        next_notice_time=None if expire_time is None else expire_time - max(rules.notices),
    )


def due_notice(expire_time: datetime, now: datetime, rules: CheckRules) -> ExpiryNotice | None:
    """Return the notice that is due now: that of the nearest threshold alone, however many were passed meanwhile."""
    if expire_time <= now:
        return None
    passed = [threshold for threshold in rules.notices if expire_time - threshold <= now]
    if not passed:
        return None
    threshold = min(passed)
    nearer = [each for each in rules.notices if each < threshold]
    return ExpiryNotice(expire_time, threshold, expire_time - max(nearer) if nearer else None)


def _next_check(key: ProviderKey, attempts: int, rules: CheckRules, drawn: float) -> datetime | None:
    firsts = {
        KeyState.PENDING_VALIDATION: rules.pending,
        KeyState.FAILING: rules.failing,
        KeyState.INVALID: rules.invalid,
        KeyState.NO_CREDIT: rules.no_credit,
    }
    if key.state is KeyState.ACTIVE:
        interval = rules.working
    elif key.state in firsts:
        interval = min(firsts[key.state] * 2 ** min(attempts, _DOUBLINGS_MAX), rules.longest)
    else:
        return None
    since = max(time for time in (key.create_time, key.state_time, key.validate_time) if time is not None)
    return since + interval * (1 + rules.jitter * (2 * drawn - 1))
