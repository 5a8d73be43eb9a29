"""Which limits apply to a call, and in which window: the scripts' rule, for whoever folds or fakes."""

from collections.abc import Iterator

from metering.domain.enums import Operation, Payer, ScopeKind, Window
from metering.domain.limits import Limit
from metering.domain.windows import MINUTE_MS, Calendar, Span

_HOUR_MINUTES = 60


def window_of(limit: Limit, at_ms: int, calendar: Calendar) -> Span:
    """Return the window of a limit around a time; days and months are the calendar's current ones."""
    minute = at_ms // MINUTE_MS
    if limit.window is Window.MINUTE:
        return Span(minute, minute + 1)
    if limit.window is Window.HOUR:
        start = minute // _HOUR_MINUTES * _HOUR_MINUTES
        return Span(start, start + _HOUR_MINUTES)
    if limit.window is Window.DAY:
        return calendar.utc_day if limit.is_utc else calendar.own_day
    return calendar.utc_month if limit.is_utc else calendar.own_month


def applies(limit: Limit, *, agent_id: str, owner_id: str, operation: Operation, payer: Payer) -> bool:
    """Tell whether a limit binds a call."""
    if limit.operation not in {None, operation} or payer not in limit.payers:
        return False
    if limit.scope.kind is ScopeKind.ACCOUNT:
        return True
    return limit.scope.scope_id == (owner_id if limit.scope.kind is ScopeKind.OWNER else agent_id)


def by_list(limits: list[Limit]) -> dict[str, list[Limit]]:
    """Return limits by the field of the account's hash that holds them."""
    lists: dict[str, list[Limit]] = {}
    for limit in sorted(limits, key=lambda each: each.slot):
        lists.setdefault(list_field(limit), []).append(limit)
    return lists


def list_field(limit: Limit) -> str:
    """Return the field that a limit stands in."""
    if limit.scope.kind is ScopeKind.ACCOUNT:
        return "La"
    return ("Lo:" if limit.scope.kind is ScopeKind.OWNER else "Lg:") + limit.scope.scope_id


def applicable(lists: dict[str, list[Limit]], *, agent_id: str, owner_id: str) -> Iterator[Limit]:
    """Yield the limits of the lists that can bind an agent's call, in the scripts' order."""
    for field in ("La", f"Lo:{owner_id}", f"Lg:{agent_id}"):
        yield from lists.get(field, ())
