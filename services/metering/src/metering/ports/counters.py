"""Accounts as Redis counts them."""

from typing import Protocol

import msgspec

from metering.domain.accounts import AccountKey
from metering.domain.licences import Licence
from metering.domain.limits import Limit
from metering.domain.reservations import Fenced, NeedsAccount, NeedsCalendar
from metering.domain.windows import Calendar


class LoadStarted(msgspec.Struct, frozen=True):
    """Admission of the account stands still; what was written for it so far ends at this sequence."""

    now_ms: int
    sequence: int


class AccountLoaded(msgspec.Struct, frozen=True):
    """The account is in Redis at this version."""

    version: int


class AccountMoved(msgspec.Struct, frozen=True):
    """Something was written for the account since the fold began."""

    sequence: int


class AccountSnapshot(msgspec.Struct, frozen=True):
    """All that Redis must know of an account: its limits, and what the ledger counts in each one's current window."""

    account: AccountKey
    version: int
    # The account's last sequence that the fold covers.
    sequence: int
    calendar: Calendar
    plan: bytes
    # With what is settled in the limit's window at the time of the fold.
    counters: tuple[tuple[Limit, int, int, int], ...]


class CounterReading(msgspec.Struct, frozen=True):
    """One limit's window as Redis has it. `counted` includes held and suspense."""

    limit_id: str
    start: int
    end: int
    counted: int
    held: int
    suspense: int


class AccountReading(msgspec.Struct, frozen=True):
    """What is used of an account's limits at a time."""

    now_ms: int
    version: int
    # Of the last record that was written for the account.
    sequence: int
    counters: tuple[CounterReading, ...]


class CounterStore(Protocol):
    """The accounts in Redis. Every method raises DependencyUnavailableError."""

    async def begin_load(
        self, account: AccountKey, licence: Licence, *, version: int, stand_still_ms: int
    ) -> LoadStarted | AccountLoaded | Fenced:
        """Stop admission of an account for a moment, unless it has this version already."""
        ...

    async def load(self, snapshot: AccountSnapshot, licence: Licence) -> AccountLoaded | AccountMoved | Fenced:
        """Give an account its limits and counters, if nothing was written for it since the fold."""
        ...

    async def roll(self, account: AccountKey, licence: Licence, calendar: Calendar) -> None:
        """Give an account the calendar of a new day or month; an older one changes nothing."""
        ...

    async def read(
        self, account: AccountKey, licence: Licence
    ) -> AccountReading | NeedsAccount | NeedsCalendar | Fenced:
        """Read what is used of an account's limits now."""
        ...
