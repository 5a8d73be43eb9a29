"""Reports refused calls to whoever keeps the audit, one report per caller and method and window.

A caller that is refused will often try again at once, and an audit log that grows with every try is a way to attack
it. So the first refusal of a window is reported at once, and the others as one count when the window ends.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

_log = structlog.get_logger("servicekit.refusals")

REFUSAL_WINDOW: Final = timedelta(seconds=10)

# Callers are told apart by what their certificates say; past this many at once they are reported together.
_KEYS_MAX: Final = 1_000
_OTHERS: Final = "(others)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Calls of one caller to one method that were refused. `caller` is empty when its certificate named nobody."""

    caller: str
    method: str
    count: int


class RefusalReporter:
    """Coalesces refusals and reports them."""

    def __init__(self, report: Callable[[Refusal], None], *, window: timedelta = REFUSAL_WINDOW) -> None:
        """Report to `report`, which must not block."""
        self._report = report
        self._window = window.total_seconds()
        # How many refusals came after the one that opened the window.
        self._open: dict[tuple[str, str], int] = {}

    def record(self, caller: str, method: str) -> None:
        """Take note of one refused call."""
        key = (caller, method)
        if key not in self._open and len(self._open) >= _KEYS_MAX:
            key = (_OTHERS, _OTHERS)
        if key in self._open:
            self._open[key] += 1
            return
        self._open[key] = 0
        self._tell(key, 1)
        asyncio.get_running_loop().call_later(self._window, self._close, key)

    def flush(self) -> None:
        """Report what was only counted so far."""
        for key in list(self._open):
            self._close(key)

    def _close(self, key: tuple[str, str]) -> None:
        suppressed = self._open.pop(key, 0)
        if suppressed:
            self._tell(key, suppressed)

    def _tell(self, key: tuple[str, str], count: int) -> None:
        refusal = Refusal(caller=key[0], method=key[1], count=count)
        try:
            self._report(refusal)
        except Exception:  # noqa: BLE001 (as below)
            # The call is refused all the same, and whoever reads the log learns what the audit does not have.
            _log.exception("refusal.unreported", caller=refusal.caller, method=refusal.method, count=refusal.count)
