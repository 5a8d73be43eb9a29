"""A provider call as tests describe it: what the ledger will say of it."""

import hashlib

from metering.domain.enums import Operation, Payer
from metering.domain.ledger import LedgerFacts
from metering.domain.reservations import Call


def facts_of(call: Call, *, agent_id: str, owner_id: str, operation: Operation, payer: Payer, body: str) -> LedgerFacts:
    """Return the facts of a first attempt on the owner's key."""
    return LedgerFacts(
        request_id=call.request_id,
        call_index=call.call_index,
        holder=call.holder,
        attempt=1,
        leg=0,
        agent_id=agent_id,
        owner_id=owner_id,
        operation=operation.value,
        subject_type="submission",
        subject_id="s-1",
        payer=payer.value,
        payer_rule="owner_key",
        key_id="key-1",
        lease_id="lease-1",
        provider="anthropic",
        model="claude-haiku-4-5",
        body_hash=hashlib.sha256(body.encode()).digest()[:16],
    )
