"""Questions to the ledger, and what it answers."""

from datetime import datetime
from enum import IntEnum

import msgspec

from metering.domain.accounts import AccountKey


class Dimension(IntEnum):
    """By what a summary is grouped."""

    OPERATION = 1
    AGENT = 2
    MODEL = 3
    KEY = 4
    PAYER = 5
    DAY = 6


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries are meant: those reserved from `start` and before `end`."""

    account: AccountKey
    start: datetime | None
    end: datetime | None
    agent_id: str = ""
    request_id: str = ""
    lease_id: str = ""
    group_by: tuple[Dimension, ...] = ()
    time_zone: str = "UTC"


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a summary; only what it is grouped by is set."""

    operation: int = 0
    agent_id: str = ""
    provider: str = ""
    model: str = ""
    key_id: str = ""
    payer: int = 0
    day: str = ""
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    settled_cost_nano_usd: int = 0
    suspense_cost_nano_usd: int = 0


class UsageSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Sums, and up to when the ledger is complete."""

    rows: tuple[UsageRow, ...]
    settled_cost_nano_usd: int
    held_cost_nano_usd: int
    suspense_cost_nano_usd: int
    as_of: datetime
