"""What is planned for keys: test calls, expiry, notices. None of it is authority."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from keyvault.domain.audit_log import AuditEntry
from keyvault.domain.key_checks import ExpiryNotice, KeyCheck
from keyvault.ports.rows import KeyRow

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedKeys:
    """Present rows of keys that changed after a position of the planner, oldest first, and the position after them."""

    position: int
    next_position: int
    rows: tuple[KeyRow, ...]
    is_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Keys to claim for test calls: how many, of which providers, by whom, until when, and the rates to keep."""

    providers: tuple[str, ...]
    claims_max: int
    holder: str
    now: datetime
    life: timedelta
    window: timedelta
    provider_max: int
    total_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeEntry:
    """A notice with its audit entry, and the row of the key that it was read from."""

    key_index: int
    notice: ExpiryNotice
    entry: AuditEntry


class KeyCheckStore(Protocol):
    """Where it is kept what is planned. Every method raises UnavailableError when the store is away."""

    async def read_changed(self, limit: int) -> ChangedKeys:
        """Return keys that are not planned yet by their present row."""
        ...

    async def checks_of(self, provider_key_ids: Sequence[str]) -> list[KeyCheck]:
        """Return what is planned for those of these keys that are."""
        ...

    async def plan(self, checks: Sequence[KeyCheck], ended: Sequence[str], changed: ChangedKeys) -> None:
        """Keep plans, forget those of keys that have ended, and move the position from where `changed` began.

        A plan by a newer row stands. A claim ends when the key was tested since, or has another secret. A position that
        another replica moved is left where it is.
        """
        ...

    async def claim(self, claim: Claim) -> list[str]:
        """Claim keys that are due and return their ids. No key is claimed twice before its claim has ended."""
        ...

    async def put_off(self, provider_key_ids: Sequence[str], until: datetime) -> None:
        """End the claims of these keys, and make them due at another time."""
        ...

    async def next_due_time(self, providers: Sequence[str]) -> datetime | None:
        """Return when the next key of these providers is due."""
        ...

    async def find_expired(self, now: datetime, limit: int) -> list[str]:
        """Return keys whose time has come, the oldest first."""
        ...

    async def forget_expiry(self, provider_key_ids: Sequence[str], now: datetime) -> None:
        """Take those of these keys whose time has come off the list of those that will expire."""
        ...

    async def find_notices(self, now: datetime, limit: int) -> list[str]:
        """Return keys of which a notice is due."""
        ...

    async def forget_notices(self, provider_key_ids: Sequence[str], now: datetime) -> None:
        """Take those of these keys of which a notice is due off the list."""
        ...

    async def append_notices(self, notices: Sequence[NoticeEntry]) -> int:
        """Append the entries of notices that were not given before, durably, and return how many.

        A notice is given once for a key, an expire time and a threshold, however often and by whomever it is asked for.

        Raises:
            AuditUnavailableError: it is not known to be durable.
        """
        ...
