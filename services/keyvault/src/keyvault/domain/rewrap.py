"""A rewrap as it stands: wrapping all DEKs under the PRIMARY KEK. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta


class RewrapState(enum.IntEnum):
    """How a pass stands. The contract's numbers."""

    IDLE = 1
    WAITING = 2
    RUNNING = 3
    PAUSED = 4
    COMPLETED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrap:
    """One pass. `has_worker` says whether a process said lately that it works at it."""

    is_wanted: bool
    is_paused: bool
    has_worker: bool
    keys_per_second_max: int
    kek_version: int
    after: tuple[str, int]
    done: int
    failed: int
    total: int
    keys_per_second: float
    start_time: datetime | None
    end_time: datetime | None
    completion_index: int

    @property
    def state(self) -> RewrapState:
        """Return how it stands."""
        if not self.is_wanted:
            return RewrapState.COMPLETED if self.completion_index else RewrapState.IDLE
        if self.is_paused:
            return RewrapState.PAUSED
        return RewrapState.RUNNING if self.has_worker else RewrapState.WAITING

    @property
    def remaining(self) -> int:
        """Return how many secrets are to be wrapped yet, by estimate: keys come and go meanwhile."""
        return max(0, self.total - self.done) if self.is_wanted else 0

    @property
    def remaining_time(self) -> timedelta | None:
        """Return how long it will take at the present rate, or None when that is not known."""
        if self.state is not RewrapState.RUNNING or self.keys_per_second <= 0:
            return None
        return timedelta(seconds=self.remaining / self.keys_per_second)


class Pace:
    """Keeps a pass at its pace, and knows the rate of the last seconds."""

    def __init__(self, now: float) -> None:
        """Begin at `now`, on the monotonic clock."""
        self._begin = now
        self._keys = 0.0

    def rest(self, keys: int, *, keys_per_second_max: int, now: float) -> float:
        """Return how many seconds to wait after `keys` more, so that the pace is kept; 0 when there is none."""
        self._keys += keys
        if keys_per_second_max <= 0:
            return 0.0
        return max(0.0, self._begin + self._keys / keys_per_second_max - now)

    def rate(self, now: float) -> float:
        """Return keys a second since the pace began."""
        return self._keys / max(now - self._begin, 1e-3)
