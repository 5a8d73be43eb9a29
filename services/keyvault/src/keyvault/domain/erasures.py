"""The erasure of an owner: what opens their keys is destroyed at once, and is gone when the last backup is.

States::

    ERASED_LIVE ──the last registered backup that could hold the secrets has expired──▶ ERASED

A backup that is registered later, but was taken before the erasure, leads back: what is known decides, and not what was
once said. An owner may add keys again; a later erasure is then another one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


class ErasureState(enum.IntEnum):
    """How far an erasure has come. The numbers are those of the contract."""

    ERASED_LIVE = 1
    ERASED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """One erasure. `backups_expire_time` is that of the last registered backup of before, if it has not expired."""

    owner_id: str
    begin_index: int
    caller: str
    actor: str
    erased_keys: int
    last_index: int
    create_time: datetime
    finish_time: datetime | None
    backups_expire_time: datetime | None

    def state(self, now: datetime) -> ErasureState:
        """Return how far it has come."""
        is_in_backups = self.backups_expire_time is not None and self.backups_expire_time > now
        is_over = self.finish_time is not None and not is_in_backups
        return ErasureState.ERASED if is_over else ErasureState.ERASED_LIVE
