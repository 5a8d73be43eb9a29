"""Holds and settlements as the Router asks for them; Metering decides and keeps the books."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from catalogue.models import Operation
from router.domain.leases import Account, Payer, PlatformCause
from router.domain.operations import Subject
from router.domain.receipts import PricedUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The most that a call can use: what makes a cap hard.

    Attributes:
        input_tokens: Bounded from above.
        fixed_cost_nano_usd: Of the input and of all else that does not depend on the output.
        output_nano_usd_per_mtok: Price of output.
        output_tokens_min: The least output that makes sense; the reservation is denied when it does not fit.
        output_tokens_max: The most that makes sense; the largest up to it that fits is granted.
    """

    input_tokens: int
    fixed_cost_nano_usd: int
    output_nano_usd_per_mtok: int
    output_tokens_min: int
    output_tokens_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Who and what a call is charged to."""

    account: Account
    agent_id: str
    owner_id: str
    operation: Operation
    payer: Payer
    provider: str
    model: str
    key_id: str
    lease_id: str
    binding_index: int
    subject: Subject | None = None
    platform_cause: PlatformCause | None = None
    platform_purpose: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """A hold asked for, for one provider call of an operation."""

    request_id: str
    call_index: int
    attribution: Attribution
    estimate: Estimate
    body_hash: bytes
    hold_ttl: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A hold on every limit that applies."""

    reservation_id: str
    attempt: int
    granted_output_tokens: int
    reserve_time: datetime
    payer_rule: str = ""
    entitlements: tuple[str, ...] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalOutcome:
    """What became of an operation that is closed.

    Attributes:
        sealed_answer: Sealed by a Router; empty when it is not kept.
    """

    usage: PricedUsage | None
    sealed_answer: bytes
    payer: Payer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """The truth about one call, in the place of its hold.

    Attributes:
        usage: What it used; ``None`` keeps the hold at its estimate, in suspense.
        is_final: Closes the operation: its request id is answered from now on, never worked on again.
        sealed_answer: What to answer then; only with ``is_final``.
    """

    reserve: Reserve
    grant: Grant
    usage: PricedUsage | None
    provider_latency: timedelta
    is_final: bool = False
    sealed_answer: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A hold given back, because its call was never billed."""

    reserve: Reserve
    grant: Grant
    is_final: bool = False
