"""Which Router processes may still use what they cached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta


@dataclass(frozen=True, slots=True)
class WatcherReport:
    """What one watching Router process did: how far it has acknowledged, and whether it waits for an echo."""

    caller: str
    holder: str
    acked_index: int
    awaits_echo: bool


class WatcherRegistry(Protocol):
    """Which Router processes may still use what they cached, known to all replicas.

    Every method raises UnavailableError when the store is away.
    """

    async def record(self, reports: Sequence[WatcherReport], bound: timedelta) -> None:
        """Record acknowledgements, and that those who await an echo may use what they cached for `bound` from now.

        It must be durable before the changes are read that go out ahead of the echo: a revocation that is not among
        those is appended later, and so finds the watcher recorded.
        """
        ...

    async def pending(self, audit_index: int) -> frozenset[tuple[str, str]]:
        """Return (caller, holder) of those who may still use what was leased before a change."""
        ...

    async def acknowledged(self, audit_index: int) -> frozenset[tuple[str, str]]:
        """Return (caller, holder) of those who have acknowledged a change."""
        ...

    async def forget(self, idle: timedelta) -> None:
        """Drop those whose time passed longer than `idle` ago."""
        ...
