"""What an answer and a failure say beside their content: who paid what to whom, and how far the charge has come."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from router.domain.completions import FinishReason
from router.domain.leases import Payer
from router.domain.usage import TokenCounts

ATTEMPTS_TOLD_MAX: Final = 20


class Settlement(StrEnum):
    """How far the charge for an operation has come."""

    SETTLED = "settled"
    PENDING = "pending"
    SUSPENSE = "suspense"
    RELEASED = "released"
    NOT_RESERVED = "not_reserved"


class UsageSource(StrEnum):
    """Where the counts of a usage come from."""

    REPORTED = "reported"
    COUNTED = "counted"
    ESTIMATED = "estimated"


class CostSource(StrEnum):
    """Where a cost comes from."""

    CATALOGUE = "catalogue"
    PROVIDER = "provider"
    SELF_HOSTED = "self_hosted"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrices:
    """Prices in nano-USD per million tokens; zero where a part has no price of its own."""

    input_nano_usd_per_mtok: int = 0
    output_nano_usd_per_mtok: int = 0
    cached_input_nano_usd_per_mtok: int = 0
    cache_write_5m_nano_usd_per_mtok: int = 0
    cache_write_1h_nano_usd_per_mtok: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedModel:
    """What one model consumed, and what that cost."""

    provider: str
    model: str
    processed: TokenCounts
    billable: TokenCounts
    cost_nano_usd: int
    tier: str = ""
    prices: UnitPrices | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedUsage:
    """What a call, or an operation with several, consumed and cost."""

    models: tuple[PricedModel, ...]
    source: UsageSource
    cost_nano_usd: int
    cost_source: CostSource
    price_version: str
    is_clamped: bool = False

    def plus(self, other: PricedUsage) -> PricedUsage:
        """Return the sum; it is as sure as the less sure of the two."""
        return PricedUsage(
            models=self.models + other.models,
            source=max(self.source, other.source, key=_SURENESS.index),
            cost_nano_usd=self.cost_nano_usd + other.cost_nano_usd,
            cost_source=self.cost_source,
            price_version=self.price_version,
            is_clamped=self.is_clamped or other.is_clamped,
        )


_SURENESS: Final = (UsageSource.REPORTED, UsageSource.COUNTED, UsageSource.ESTIMATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Who paid, for what, on which key."""

    payer: Payer
    key_id: str
    lease_id: str
    provider: str
    model: str
    settlement: Settlement
    reservation_ids: tuple[str, ...]
    attempts: int
    latency: timedelta
    provider_latency: timedelta
    usage: PricedUsage | None = None
    payer_rule: str = ""
    finish_reason: FinishReason = FinishReason.UNKNOWN
    is_replay: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailure:
    """One provider call of an operation that failed.

    Attributes:
        failure: The class of the failure, from the one vocabulary for all vendors.
    """

    provider: str
    model: str
    key_id: str
    failure: str
    http_status: int
    may_be_billed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureReport:
    """What had happened to money and attempts when an operation failed."""

    retryable: bool
    settlement: Settlement
    retry_time: datetime | None = None
    payer: Payer | None = None
    usage: PricedUsage | None = None
    attempts: tuple[AttemptFailure, ...] = ()
