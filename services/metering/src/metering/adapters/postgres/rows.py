"""Rows of the ledger and of holds, to and from the domain."""

from typing import Any, Final
from uuid import UUID

import msgspec

from metering.domain.accounts import AccountKey, partition_of
from metering.domain.enums import CallState, EntryKind
from metering.domain.ledger import LedgerEntry, LedgerFacts
from metering.domain.outbox import OpenHold

_encode_facts: Final = msgspec.msgpack.Encoder().encode
_decode_facts: Final = msgspec.msgpack.Decoder(LedgerFacts).decode


def entry_row(entry: LedgerEntry, *, replaced_tokens: int = 0, replaced_cost: int = 0) -> tuple[Any, ...]:
    """Return an entry's columns; of an adjustment, what it replaces is taken off."""
    facts = entry.facts
    return (
        entry.entry_id,
        int(entry.kind),
        entry.reservation_id,
        entry.account,
        UUID(facts.request_id),
        facts.call_index,
        UUID(facts.holder),
        facts.attempt,
        facts.leg,
        facts.agent_id,
        facts.owner_id,
        facts.operation,
        facts.subject_type,
        facts.subject_id,
        facts.payer,
        facts.payer_rule,
        facts.key_id,
        facts.lease_id,
        facts.provider,
        facts.model,
        entry.calls,
        facts.input_tokens,
        facts.output_tokens,
        facts.input_tokens + facts.output_tokens - replaced_tokens,
        facts.cost_nano_usd - replaced_cost,
        replaced_cost,
        entry.overrun_nano_usd,
        facts.usage_source,
        facts.price_version,
        facts.usage_document,
        facts.latency_ms,
        facts.is_final,
        facts.body_hash,
        facts.for_account,
        facts.platform_purpose,
        entry.reserve_time,
        entry.settle_time,
    )


def entry_of(row: Any) -> LedgerEntry:
    """Return the entry of a row."""
    facts = LedgerFacts(
        request_id=str(row["request_id"]),
        call_index=row["call_index"],
        holder=str(row["holder"]),
        attempt=row["attempt"],
        leg=row["leg"],
        agent_id=row["agent_id"],
        owner_id=row["owner_id"],
        operation=row["operation"],
        subject_type=row["subject_type"],
        subject_id=row["subject_id"],
        payer=row["payer"],
        payer_rule=row["payer_rule"],
        key_id=row["key_id"],
        lease_id=row["lease_id"],
        provider=row["provider"],
        model=row["model"],
        body_hash=row["body_hash"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        cost_nano_usd=row["cost_nano_usd"],
        usage_document=row["usage_document"],
        usage_source=row["usage_source"],
        price_version=row["price_version"],
        latency_ms=row["latency_ms"],
        is_final=row["is_final"],
        for_account=row["for_account"],
        platform_purpose=row["platform_purpose"],
    )
    return LedgerEntry(
        entry_id=row["entry_id"],
        kind=EntryKind(row["kind"]),
        reservation_id=row["reservation_id"],
        account=AccountKey(row["account"]),
        facts=facts,
        calls=row["calls"],
        overrun_nano_usd=row["overrun_nano_usd"],
        reserve_time=row["reserve_time"],
        settle_time=row["settle_time"],
    )


def hold_row(hold: OpenHold) -> tuple[Any, ...]:
    """Return a hold's columns."""
    facts = hold.facts
    return (
        hold.reservation_id,
        hold.account,
        partition_of(hold.account),
        int(hold.state),
        facts.agent_id,
        facts.owner_id,
        facts.operation,
        facts.payer,
        hold.calls,
        hold.tokens,
        hold.cost_nano_usd,
        hold.output_tokens,
        hold.reserve_ms,
        hold.due_ms,
        _encode_facts(msgspec.structs.replace(facts, sealed_answer=b"")),
    )


def open_hold(row: Any) -> OpenHold:
    """Return the hold of a row."""
    return OpenHold(
        reservation_id=row["reservation_id"],
        account=AccountKey(row["account"]),
        state=CallState(row["state"]),
        calls=row["calls"],
        tokens=row["tokens"],
        cost_nano_usd=row["cost_nano_usd"],
        output_tokens=row["output_tokens"],
        reserve_ms=row["reserve_ms"],
        due_ms=row["due_ms"],
        facts=_decode_facts(row["facts"]),
    )
