r"""Reservations: what is asked of admission, and what it answers.

    (nothing) --reserve--> HELD --settle--> SETTLED
                            |  \--release--> RELEASED
                            |--time passes, or it is not known whether the provider bills--> SUSPENSE
    SUSPENSE --settle--> SETTLED      --release--> RELEASED      --its day ends--> POSTED
    POSTED --settle--> SETTLED (the ledger gets the difference)
    (nothing) --settle--> SETTLED     (nothing) --release--> RELEASED (a tombstone)

An operation is closed by a settlement that is final; until then each retry, repair, chunk or fallback is a call of its
own, and Metering numbers the attempts.
"""

from functools import lru_cache
from typing import Final

import msgspec

from metering.domain.accounts import AccountKey
from metering.domain.enums import CallState, Leg, OperationState
from metering.domain.ledger import LedgerFacts
from metering.domain.limits import LimitDenial
from metering.domain.windows import to_ms
from servicekit.ids import uuid7_time

HOUR_MS: Final = 3_600_000
# An operation with more provider calls than this is a loop.
ATTEMPTS_MAX: Final = 128


class Call(msgspec.Struct, frozen=True, gc=False):
    """Which provider call of which operation, and which Router process makes it."""

    request_id: str
    call_index: int
    holder: str


class Estimate(msgspec.Struct, frozen=True, gc=False):
    """The most that a call can use. Prices are nano-USD per million tokens."""

    input_tokens: int
    fixed_cost_nano_usd: int
    output_nano_usd_per_mtok: int
    output_tokens_min: int
    output_tokens_max: int


class ReserveCommand(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One leg of a call to hold."""

    call: Call
    account: AccountKey
    estimate: Estimate
    facts: LedgerFacts
    ttl_ms: int
    leg: Leg = Leg.ACCOUNT


class SettleCommand(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The truth about one leg of a call; self-contained, because the hold may be lost."""

    reservation_id: str
    attempt: int
    call: Call
    account: AccountKey
    facts: LedgerFacts
    is_final: bool
    in_suspense: bool
    held_tokens: int
    held_cost_nano_usd: int
    reserve_ms: int


class ReleaseCommand(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One leg of a call to give back; attempt 0 when the caller never learned it."""

    call: Call
    account: AccountKey
    for_account: AccountKey
    attempt: int = 0
    leg: Leg = Leg.ACCOUNT
    # As if the call had never been asked for: its other leg was denied, and denials are not remembered.
    forgets: bool = False


class ExtendCommand(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One leg of a call to keep longer."""

    reservation_id: str
    call: Call
    account: AccountKey
    ttl_ms: int


class LookupCommand(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An operation to look up."""

    request_id: str
    account: AccountKey
    body_hash: bytes


class PriorAttempt(msgspec.Struct, frozen=True):
    """An attempt as Postgres knows it."""

    attempt: int
    holder: str
    call_index: int
    state: CallState
    cost_nano_usd: int
    tokens: int


class PriorOperation(msgspec.Struct, frozen=True):
    """An operation as Postgres knows it, for when Redis does not."""

    request_id: str
    account: AccountKey
    body_hash: bytes
    is_final: bool
    attempts: tuple[PriorAttempt, ...]


class Granted(msgspec.Struct, frozen=True, gc=False):
    """A hold on every limit that applies."""

    attempt: int
    output_tokens: int
    cost_nano_usd: int
    expire_ms: int
    reserve_ms: int
    sequence: int
    plan: bytes


class Denied(msgspec.Struct, frozen=True):
    """Hard limits that did not let the call through."""

    denials: tuple[LimitDenial, ...]


class InProgress(msgspec.Struct, frozen=True):
    """Another Router's hold on the operation lives."""

    retry_ms: int


class Closed(msgspec.Struct, frozen=True):
    """The operation has a final outcome, durable once the sequence is."""

    sequence: int
    attempts: int


class CallClosed(msgspec.Struct, frozen=True):
    """This very call was settled, released or expired before."""

    state: CallState


class Reused(msgspec.Struct, frozen=True):
    """The request id was used with another body."""


class TooManyAttempts(msgspec.Struct, frozen=True):
    """The operation has made as many calls as one may."""


class NeedsAccount(msgspec.Struct, frozen=True):
    """The account's limits are not in Redis, or are being loaded (`is_loading`): refused, never unlimited."""

    is_loading: bool = False


class NeedsCalendar(msgspec.Struct, frozen=True):
    """A day or month of the account has ended at this time (ms)."""

    now_ms: int


class NeedsHistory(msgspec.Struct, frozen=True):
    """The id is so old that only Postgres can tell whether it was here."""


class Fenced(msgspec.Struct, frozen=True):
    """The partition belongs to another generation: Redis was lost or replaced."""


class Settled(msgspec.Struct, frozen=True, gc=False):
    """Counted at this sequence."""

    sequence: int
    overrun_nano_usd: int


class Repeat(msgspec.Struct, frozen=True, gc=False):
    """Counted before, with these figures."""

    sequence: int
    cost_nano_usd: int
    tokens: int


class Released(msgspec.Struct, frozen=True, gc=False):
    """Given back; `was_unknown` if there was nothing and a tombstone was left."""

    sequence: int
    was_unknown: bool
    # Who would have paid; 0 if nothing was given back now.
    payer: int = 0


class AlreadySettled(msgspec.Struct, frozen=True):
    """A reservation that was settled cannot be given back."""


class Extended(msgspec.Struct, frozen=True):
    """The hold stands until then."""

    expire_ms: int


class NotHeld(msgspec.Struct, frozen=True):
    """There is no hold to keep longer."""


class Found(msgspec.Struct, frozen=True):
    """How far an operation has come."""

    state: OperationState
    holder: str = ""
    expire_ms: int = 0
    sequence: int = 0
    attempts: int = 0


ReserveOutcome = (
    Granted
    | Denied
    | InProgress
    | Closed
    | CallClosed
    | Reused
    | TooManyAttempts
    | NeedsAccount
    | NeedsCalendar
    | NeedsHistory
    | Fenced
)
SettleOutcome = Settled | Repeat | NeedsHistory | Fenced
ReleaseOutcome = Released | AlreadySettled | Fenced
ExtendOutcome = Extended | NotHeld | Fenced
LookupOutcome = Found | Reused | NeedsHistory | Fenced


@lru_cache(maxsize=131_072)
def id_ms(identifier: str) -> int:
    """Return when an id was made, in milliseconds since the epoch.

    Raises:
        ValueError: It is not a canonical UUIDv7.
    """
    return to_ms(uuid7_time(identifier))


def id_hour(identifier: str) -> int:
    """Return the hour since the epoch that an id was made in."""
    return id_ms(identifier) // HOUR_MS
