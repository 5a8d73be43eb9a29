"""The checks of what an owner says of a key: each field, all at once, every complaint with its remedy."""

from __future__ import annotations

import unicodedata
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from keyvault.domain.provider_keys import PRIORITY_DEFAULT, PRIORITY_MAX, OperationRoute
from servicekit.errors import FieldViolation, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

Checked = TypeVar("Checked")

LABEL_CHARACTERS_MAX: Final = 100
MODEL_CHARACTERS_MAX: Final = 200
TIER_CHARACTERS_MAX: Final = 64
CONTEXT_WINDOW_TOKENS_MAX: Final = 100_000_000
DIMENSIONS_MAX: Final = 65_536
CAPABILITIES: Final = frozenset({"structured_output", "vision", "reasoning", "embedding"})
FEATURES: Final = frozenset({"server_tools", "media_by_url", "model_fallback"})


class FieldChecks:
    """Runs checks of several fields and raises all complaints together, so that an owner mends them in one go."""

    def __init__(self) -> None:
        """Start without complaints."""
        self._violations: list[FieldViolation] = []

    def run(self, check: Callable[[], Checked]) -> Checked | None:
        """Return what `check` returns, or None when it complained."""
        try:
            return check()
        except InvalidArgumentError as error:
            self._violations.extend(error.violations)
            return None

    def complain(self, field: str, reason: str, remedy: str) -> None:
        """Add one complaint."""
        self._violations.append(FieldViolation(field=field, reason=reason, description=remedy))

    def conclude(self) -> None:
        """Raise InvalidArgumentError when there were complaints."""
        if self._violations:
            raise InvalidArgumentError(violations=self._violations)


def check_text(field: str, text: str, *, characters_max: int) -> str:
    """Return `text` without white space around it, when people may read it: no control or invisible characters.

    Raises:
        InvalidArgumentError: naming `field`.
    """
    trimmed = text.strip()
    if len(trimmed) > characters_max:
        raise refused(field, "TEXT_TOO_LONG", f"Send at most {characters_max} characters.")
    if any(unicodedata.category(character).startswith("C") for character in trimmed):
        raise refused(field, "TEXT_HAS_CONTROL_CHARACTERS", "Leave control and invisible characters out.")
    return trimmed


def check_priority(priority: int | None) -> int:
    """Return the priority, the default when none is given.

    Raises:
        InvalidArgumentError: it is out of range.
    """
    if priority is None:
        return PRIORITY_DEFAULT
    if not 0 <= priority <= PRIORITY_MAX:
        raise refused("priority", "PRIORITY_OUT_OF_RANGE", f"Send 0 to {PRIORITY_MAX}; lower is tried first.")
    return priority


def check_expire_time(expire_time: datetime | None, now: datetime) -> datetime | None:
    """Return the time at which a key is to end, None for never.

    Raises:
        InvalidArgumentError: it is not in the future.
    """
    if expire_time is not None and expire_time <= now:
        raise refused("expire_time", "TIME_NOT_IN_FUTURE", "Send a time in the future, or leave it out for never.")
    return expire_time


def check_mapping(
    mapping: Sequence[OperationRoute], why_unable: Callable[[OperationRoute], str]
) -> tuple[OperationRoute, ...]:
    """Return the mapping when each operation stands in it once, with a model that can do it.

    Raises:
        InvalidArgumentError: naming each route that does not fit and why.
    """
    checks = FieldChecks()
    seen = set()
    for position, route in enumerate(mapping):
        field = f"mapping[{position}]"
        if route.operation in seen:
            checks.complain(f"{field}.operation", "OPERATION_REPEATED", "Name each operation once.")
        seen.add(route.operation)
        checks.run(partial(_check_route, field, route, why_unable))
    checks.conclude()
    return tuple(mapping)


def _check_route(field: str, route: OperationRoute, why_unable: Callable[[OperationRoute], str]) -> None:
    if not check_text(f"{field}.model", route.model, characters_max=MODEL_CHARACTERS_MAX):
        raise refused(f"{field}.model", "MODEL_EMPTY", "Name the model as the provider does.")
    if route.model != route.model.strip():
        raise refused(f"{field}.model", "MODEL_MALFORMED", "Leave out the white space around the model's name.")
    check_text(f"{field}.tier", route.tier, characters_max=TIER_CHARACTERS_MAX)
    _check_words(f"{field}.capabilities", route.capabilities, CAPABILITIES)
    _check_words(f"{field}.features", route.features, FEATURES)
    if not 0 <= route.context_window_tokens <= CONTEXT_WINDOW_TOKENS_MAX:
        raise refused(f"{field}.context_window_tokens", "OUT_OF_RANGE", f"Send 0 to {CONTEXT_WINDOW_TOKENS_MAX}.")
    if not 0 <= route.dimensions <= DIMENSIONS_MAX:
        raise refused(f"{field}.dimensions", "OUT_OF_RANGE", f"Send 0 to {DIMENSIONS_MAX}.")
    if why := why_unable(route):
        raise refused(f"{field}.model", "MODEL_UNSUITABLE", why)


def _check_words(field: str, words: Sequence[str], known: frozenset[str]) -> None:
    if not known.issuperset(words) or len(set(words)) != len(words):
        raise refused(
            field, "WORD_UNKNOWN", f"Send each of these at most once, and nothing else: {', '.join(sorted(known))}."
        )


def refused(field: str, reason: str, remedy: str) -> InvalidArgumentError:
    """Return the complaint about one field."""
    return InvalidArgumentError(violations=[FieldViolation(field=field, reason=reason, description=remedy)])
