"""What a breach exposed: which keys, and whether their owners have put an end to it. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from keyvault.domain.provider_keys import KeyState

if TYPE_CHECKING:
    from keyvault.domain.provider_keys import ProviderKey


class Remedy(enum.IntEnum):
    """What has become of an exposed secret. The contract's numbers."""

    NONE = 1
    REPLACED = 2
    REVOKED = 3


@dataclass(frozen=True, slots=True)
class Interval:
    """From when to when something could be read."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class CallersLeases:
    """The leases of one key that a caller took."""

    count: int
    first: datetime
    last: datetime


def was_stored(key: ProviderKey, interval: Interval) -> bool:
    """Return whether a secret of this key was in the database at some time of the interval."""
    is_later = key.create_time > interval.end
    is_over = key.state is KeyState.REVOKED and key.update_time < interval.start
    return not is_later and not is_over


def remedy(key: ProviderKey, secret_time: datetime | None, interval: Interval) -> Remedy:
    """Return what has become of the secret that was exposed in the interval.

    A secret of which the log no longer says when it came is older than what the log keeps, and so than the interval.
    """
    if key.state is KeyState.REVOKED:
        return Remedy.REVOKED
    return Remedy.REPLACED if secret_time is not None and secret_time > interval.end else Remedy.NONE
