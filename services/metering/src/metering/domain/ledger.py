"""Ids of the ledger, and what an entry says.

A reservation's id is derived from the operation, the attempt and the leg, so that whoever repeats anything repeats the
id. An entry's id adds its kind: a settlement and the suspense that it corrects are two entries of one reservation, and
one key for both would drop the second. All carry the timestamp of the request, which is what the ledger is partitioned
by: the id alone is its key, so nothing can be entered twice.

    reservation (own leg)       UUIDv7(time of request_id, request_id, attempt, account key)
    reservation (platform leg)  UUIDv7(same time, own leg's id, "platform")
    entry                       UUIDv7(same time, reservation id, kind)
"""

from datetime import datetime
from functools import lru_cache
from uuid import UUID

import msgspec

from metering.domain.accounts import AccountKey
from metering.domain.enums import EntryKind, Leg, Operation, Payer
from servicekit.ids import derived_uuid7, uuid7_time


class LedgerFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an outbox record carries about a call besides what the script computed. Opaque to scripts."""

    request_id: str
    call_index: int
    holder: str
    attempt: int
    leg: int
    agent_id: str
    owner_id: str
    operation: int
    subject_type: str
    subject_id: str
    payer: int
    payer_rule: str
    key_id: str
    lease_id: str
    provider: str
    model: str
    body_hash: bytes = b""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano_usd: int = 0
    # The usage as it came, for whoever reads the ledger; its totals stand beside it.
    usage_document: bytes = b""
    usage_source: int = 0
    price_version: str = ""
    latency_ms: int = 0
    is_final: bool = False
    sealed_answer: bytes = b""
    # The payer's leg of a platform-paid call names the account that the call was for.
    for_account: str = ""
    # Why the platform pays by its caller's request.
    platform_purpose: str = ""


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry. Never changed once it is written."""

    entry_id: UUID
    kind: EntryKind
    reservation_id: UUID
    account: AccountKey
    facts: LedgerFacts
    calls: int
    overrun_nano_usd: int
    reserve_time: datetime
    settle_time: datetime

    @property
    def operation(self) -> Operation:
        """Return what the call was for."""
        return Operation(self.facts.operation)

    @property
    def payer(self) -> Payer:
        """Return whose key was used."""
        return Payer(self.facts.payer)


@lru_cache(maxsize=131_072)
def reservation_id(request_id: str, attempt: int, account: AccountKey) -> str:
    """Return the id of an attempt's own leg."""
    at = uuid7_time(request_id)
    return derived_uuid7(at, request_id.encode(), attempt.to_bytes(4, "big"), account.encode())


@lru_cache(maxsize=8_192)
def platform_leg_id(own_leg_id: str) -> str:
    """Return the id of the platform's leg of a call that it pays."""
    return derived_uuid7(uuid7_time(own_leg_id), own_leg_id.encode(), b"platform")


def entry_id(reservation: str, kind: EntryKind) -> str:
    """Return the id of an entry of a reservation."""
    return derived_uuid7(uuid7_time(reservation), reservation.encode(), kind.name.encode())


def leg_id(request_id: str, attempt: int, account: AccountKey, leg: Leg) -> str:
    """Return the id of one leg of an attempt on the account that the call is for."""
    own = reservation_id(request_id, attempt, account)
    return own if leg is Leg.ACCOUNT else platform_leg_id(own)
