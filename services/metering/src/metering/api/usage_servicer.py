"""UsageService: what was spent, and on what."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration
from typing_extensions import override

from byok.metering.v1 import usage_service_pb2, usage_service_pb2_grpc
from byok.type.v1 import account_pb2, operation_pb2
from metering.api.fields import (
    account_from,
    account_to,
    checked_request_id,
    ensure_distinct,
    invalid,
    optional_identifier,
    principal_from,
    time_from,
    time_to,
)
from metering.api.page_tokens import invalid_page_token, page_size, page_token, position_of
from metering.api.usage_documents import usage_of
from metering.domain.ledger import LedgerEntry
from metering.domain.usage import Dimension, UsageQuery, UsageRow
from metering.domain.windows import to_ms
from metering.usecases.query_usage import GetUsageSummary, ListLedgerEntries
from servicekit.clock import Clock
from servicekit.identity import current_caller

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

# Milliseconds of the reserve, and the entry's id.
_POSITION = re.compile(r"[0-9]{1,14}\.[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIMENSIONS = {dimension.value: dimension for dimension in Dimension}


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageUseCases:
    """What the service does."""

    summary: GetUsageSummary
    entries: ListLedgerEntries


class UsageServicer(usage_service_pb2_grpc.UsageServiceServicer):
    """Takes calls, asks use cases, answers."""

    def __init__(self, usecases: UsageUseCases, clock: Clock) -> None:
        """Serve use cases."""
        self._do = usecases
        self._clock = clock

    @override
    async def GetUsageSummary(
        self, request: usage_service_pb2.GetUsageSummaryRequest, context: "Context"
    ) -> usage_service_pb2.GetUsageSummaryResponse:
        principal = principal_from(request.acting_for, current_caller())
        ensure_distinct(request.group_by, "group_by")
        if not set(request.group_by) <= set(_DIMENSIONS):
            raise invalid("group_by", "DIMENSION_UNKNOWN", "must be values of UsageDimension")
        query = UsageQuery(
            account=account_from(request.account, "account"),
            start=time_from(request.start_time, "start_time"),
            end=time_from(request.end_time, "end_time"),
            agent_id=optional_identifier(request.agent_id, "agent_id"),
            group_by=tuple(_DIMENSIONS[each] for each in request.group_by),
        )
        summary, time_zone = await self._do.summary(query, principal)
        return usage_service_pb2.GetUsageSummaryResponse(
            rows=[_row(row) for row in summary.rows],
            settled_cost_nano_usd=summary.settled_cost_nano_usd,
            held_cost_nano_usd=summary.held_cost_nano_usd,
            suspense_cost_nano_usd=summary.suspense_cost_nano_usd,
            as_of_time=time_to(summary.as_of),
            time_zone=time_zone,
        )

    @override
    async def ListLedgerEntries(
        self, request: usage_service_pb2.ListLedgerEntriesRequest, context: "Context"
    ) -> usage_service_pb2.ListLedgerEntriesResponse:
        principal = principal_from(request.acting_for, current_caller())
        if request.request_id:
            now = self._clock.now()
            checked_request_id(request.request_id, now, to_ms(now))
        query = UsageQuery(
            account=account_from(request.account, "account"),
            start=time_from(request.start_time, "start_time"),
            end=time_from(request.end_time, "end_time"),
            agent_id=optional_identifier(request.agent_id, "agent_id"),
            request_id=request.request_id,
            lease_id=optional_identifier(request.lease_id, "lease_id"),
        )
        count = page_size(request.page_size)
        bound_to = (
            "ListLedgerEntries",
            query.account,
            query.agent_id,
            query.request_id,
            query.lease_id,
            f"{query.start}/{query.end}",
        )
        after = position_of(request.page_token, *bound_to)
        if after and not _POSITION.fullmatch(after):
            raise invalid_page_token()
        entries = await self._do.entries(query, principal, after=after, count=count + 1)
        following = ""
        if len(entries) > count:
            last = entries[count - 1]
            following = page_token(f"{to_ms(last.reserve_time)}.{last.entry_id}", *bound_to)
        return usage_service_pb2.ListLedgerEntriesResponse(
            entries=[_entry(entry) for entry in entries[:count]], next_page_token=following
        )


def _row(row: UsageRow) -> usage_service_pb2.UsageSummaryRow:
    return usage_service_pb2.UsageSummaryRow(
        operation=operation_pb2.Operation.ValueType(row.operation),
        agent_id=row.agent_id,
        provider=row.provider,
        model=row.model,
        key_id=row.key_id,
        payer=account_pb2.Payer.ValueType(row.payer),
        day=row.day,
        settled_calls=row.calls,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        settled_cost_nano_usd=row.settled_cost_nano_usd,
        suspense_cost_nano_usd=row.suspense_cost_nano_usd,
    )


def _entry(entry: LedgerEntry) -> usage_service_pb2.LedgerEntry:
    facts = entry.facts
    message = usage_service_pb2.LedgerEntry(
        entry_id=str(entry.entry_id),
        kind=usage_service_pb2.LedgerEntryKind.ValueType(entry.kind.value),
        reservation_id=str(entry.reservation_id),
        request_id=facts.request_id,
        call_index=facts.call_index,
        account=account_to(entry.account),
        agent_id=facts.agent_id,
        owner_id=facts.owner_id,
        operation=operation_pb2.Operation.ValueType(facts.operation),
        payer=account_pb2.Payer.ValueType(facts.payer),
        payer_rule=facts.payer_rule,
        key_id=facts.key_id,
        lease_id=facts.lease_id,
        provider=facts.provider,
        model=facts.model,
        usage=usage_of(entry),
        overrun_nano_usd=entry.overrun_nano_usd,
        reserve_time=time_to(entry.reserve_time),
        settle_time=time_to(entry.settle_time),
        provider_latency=Duration(seconds=facts.latency_ms // 1_000, nanos=facts.latency_ms % 1_000 * 1_000_000),
        platform_purpose=facts.platform_purpose,
    )
    if facts.subject_type or facts.subject_id:
        message.subject.type = facts.subject_type
        message.subject.id = facts.subject_id
    return message
