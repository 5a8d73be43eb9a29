"""Limits: what they count, whom they bind, and how their ids and wire to the scripts are made.

A limit is unique by account, scope, operation, unit, window and payers; its id is derived from these, so that setting
"the same" limit twice changes its amount and never makes a second one. Inside an account a limit has a *slot*, a small
number under which Redis counts; a slot is never given to another limit.
"""

import hashlib
from datetime import datetime
from typing import Final

import msgspec

from metering.domain.accounts import AccountKey, account_id
from metering.domain.enums import Operation, Payer, ScopeKind, Unit, Window
from metering.domain.windows import Span

OWN_PAYERS: Final = frozenset({Payer.OWNER, Payer.ORGANIZATION})
# Every reserve reads all limits that apply; the bound keeps that a matter of microseconds.
LIMITS_PER_SCOPE_MAX: Final = 64

_ID_HEX_DIGITS: Final = 32


class Scope(msgspec.Struct, frozen=True):
    """The part of an account that a limit binds; `scope_id` is empty for the whole account."""

    kind: ScopeKind
    scope_id: str = ""


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit of an account."""

    account: AccountKey
    scope: Scope
    # None means all operations together.
    operation: Operation | None
    unit: Unit
    window: Window
    payers: frozenset[Payer]
    amount: int
    is_hard: bool
    is_default: bool = False
    # Days and months in UTC instead of the account's own zone: for limits that the platform or a plan sets.
    is_utc: bool = False
    slot: int = 0
    # The account's config version that set it.
    version: int = 0
    update_time: datetime | None = None

    @property
    def limit_id(self) -> str:
        """Return the id, derived from what makes the limit unique."""
        scope = f"{self.scope.kind.value}:{self.scope.scope_id}"
        payers = ",".join(str(payer.value) for payer in sorted(self.payers))
        parts = (
            self.account,
            scope,
            str(int(self.operation or 0)),
            str(self.unit.value),
            str(self.window.value),
            payers,
        )
        digest = hashlib.sha256()
        for part in parts:
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
        return f"lim_{digest.hexdigest()[:_ID_HEX_DIGITS]}"

    @property
    def etag(self) -> str:
        """Return what changes with every change of the limit."""
        return f"v{self.version}"

    def packed(self) -> list[int]:
        """Return the limit as scripts read it; see `lua/prelude.lua`."""
        return [
            self.slot,
            int(self.operation or 0),
            sum(1 << (payer.value - 1) for payer in self.payers),
            self.unit.value,
            self.window.value,
            0 if self.is_utc else 1,
            1 if self.is_hard else 0,
            self.amount,
        ]


class LimitCounter(msgspec.Struct, frozen=True):
    """A limit's use in one window: what Redis counts is settled + held + suspense."""

    limit: Limit
    span: Span
    settled: int = 0
    held: int = 0
    suspense: int = 0

    @property
    def remaining(self) -> int:
        """Return what may still be reserved."""
        return max(0, self.limit.amount - self.settled - self.held - self.suspense)


class LimitDenial(msgspec.Struct, frozen=True):
    """Why one limit did not let a call through."""

    limit_id: str
    unit: Unit
    window: Window
    operation: int
    amount: int
    used: int
    requested: int
    reset_time: datetime
    scope: str

    @property
    def remaining(self) -> int:
        """Return what may still be reserved."""
        return max(0, self.amount - self.used)


def default_cost_cap(account: AccountKey, amount: int) -> Limit:
    """Return the daily cost cap that every account has from its start."""
    return Limit(
        account=account,
        scope=Scope(ScopeKind.ACCOUNT),
        operation=None,
        unit=Unit.COST,
        window=Window.DAY,
        payers=OWN_PAYERS,
        amount=amount,
        is_hard=True,
        is_default=True,
    )


def scope_text(scope: Scope, account: AccountKey) -> str:
    """Return a scope as an error names it."""
    names = {ScopeKind.ACCOUNT: "account", ScopeKind.OWNER: "owner", ScopeKind.AGENT: "agent"}
    return f"{names[scope.kind]}:{scope.scope_id or account_id(account)}"
