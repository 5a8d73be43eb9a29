"""Usage as it travels and as the ledger keeps it: the same message, serialized."""

from collections.abc import Sequence

from byok.type.v1 import usage_pb2
from metering.api.fields import invalid
from metering.domain.ledger import LedgerEntry
from metering.domain.money import check_amount


def tokens_of(usage: usage_pb2.Usage) -> tuple[int, int]:
    """Return the tokens read and written by all models: those processed, or those billed where no others are told.

    Raises:
        InvalidArgumentError: A count is negative or too large.
    """
    read = written = 0
    for model in usage.models:
        counts = model.processed if model.HasField("processed") else model.billable
        read += counts.input_tokens
        written += counts.output_tokens
        if counts.input_tokens < 0 or counts.output_tokens < 0:
            raise invalid("usage.models", "AMOUNT_OUT_OF_RANGE", "token counts must not be negative")
    check_amount(read + written, "usage.models")
    return read, written


def usage_of(entry: LedgerEntry) -> usage_pb2.Usage:
    """Return an entry's usage; its cost is the entry's, which of an adjustment is the difference."""
    facts = entry.facts
    usage = usage_pb2.Usage()
    if facts.usage_document:
        usage.MergeFromString(facts.usage_document)
    else:
        counts = usage_pb2.TokenCounts(input_tokens=facts.input_tokens, output_tokens=facts.output_tokens)
        usage.models.add(provider=facts.provider, model=facts.model, processed=counts)
        usage.source = usage_pb2.USAGE_SOURCE_ESTIMATED
    usage.cost_nano_usd = facts.cost_nano_usd
    return usage


def total_usage(entries: Sequence[LedgerEntry]) -> usage_pb2.Usage:
    """Return what all calls of an operation came to."""
    total = usage_pb2.Usage()
    for entry in entries:
        usage = usage_pb2.Usage.FromString(entry.facts.usage_document)
        total.models.extend(usage.models)
        total.is_clamped = total.is_clamped or usage.is_clamped
        # The least certain source and the last price version stand for all.
        total.source = max(total.source, usage.source)
        total.cost_source = max(total.cost_source, usage.cost_source)
        total.price_version = usage.price_version or total.price_version
        total.cost_nano_usd += usage.cost_nano_usd
    return total
