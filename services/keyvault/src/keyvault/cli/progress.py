"""A bar that shows how far something has come: one line that changes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Final

from servicekit.clock import SystemClock

_WIDTH: Final = 30
_LINE_EVERY: Final = timedelta(seconds=5)


class Progress:
    """The progress of one piece of work."""

    def __init__(self) -> None:
        """Begin with nothing shown."""
        self._clock = SystemClock()
        self._is_terminal = sys.stdout.isatty()
        self._shown: tuple[str, float] | None = None

    def show(self, state: str, *, done: int, total: int, rate: float, remaining: timedelta | None) -> None:
        """Show how far it is; elsewhere than on a terminal only when the state changes, or from time to time."""
        now = self._clock.monotonic()
        line = self._line(state, done=done, total=total, rate=rate, remaining=remaining)
        if self._is_terminal:
            sys.stdout.write(f"\r\x1b[K{line}")
        elif self._shown is None or self._shown[0] != state or now - self._shown[1] >= _LINE_EVERY.total_seconds():
            sys.stdout.write(line + "\n")
            self._shown = (state, now)
        sys.stdout.flush()

    def end(self) -> None:
        """Leave the last line standing."""
        if self._is_terminal:
            sys.stdout.write("\n")
            sys.stdout.flush()

    @staticmethod
    def _line(state: str, *, done: int, total: int, rate: float, remaining: timedelta | None) -> str:
        share = done / total if total else float(state == "COMPLETED")
        filled = round(share * _WIDTH)
        bar = "#" * filled + "." * (_WIDTH - filled)
        left = f", {timedelta(seconds=round(remaining.total_seconds()))} left" if remaining is not None else ""
        return f"{state:9} [{bar}] {share:4.0%} {done:,} of {total:,}, {rate:,.0f}/s{left}"
