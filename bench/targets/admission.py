"""Pairs of reserve and settle at Metering in batches, as a Router sends them."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from bench.canned import MODEL
from bench.closed_loop import Call
from bench.errors import BenchError
from bench.jobs import PairsJob
from bench.targets.connection import bytes_call, open_connection
from byok.metering.v1.admission_service_pb2 import (
    ReserveBatchRequest,
    ReserveBatchResponse,
    SettleBatchRequest,
    SettleBatchResponse,
)
from byok.metering.v1.reservation_pb2 import Attribution, CallIdentity, Estimate, Grant, ReserveItem, SettleItem
from byok.type.v1.account_pb2 import PAYER_OWNER, Account
from byok.type.v1.operation_pb2 import OPERATION_GUARDRAIL_EVALUATION
from byok.type.v1.usage_pb2 import (
    COST_SOURCE_CATALOGUE,
    USAGE_SOURCE_REPORTED,
    ModelUsage,
    TokenCounts,
    UnitPrices,
    Usage,
)
from servicekit.ids import new_uuid7

_BODY_HASH = bytes(range(32))
_HOLD_TTL = Duration(seconds=90)
_LATENCY = Duration(nanos=1_000_000)
_ESTIMATE = Estimate(
    input_tokens=1_200,
    fixed_cost_nano_usd=180_000,
    output_nano_usd_per_mtok=600_000_000,
    output_tokens_min=64,
    output_tokens_max=512,
)
_TOKENS = TokenCounts(input_tokens=210, output_tokens=24)
_USAGE = Usage(
    models=[
        ModelUsage(
            provider="openai",
            model=MODEL,
            tier="default",
            processed=_TOKENS,
            billable=_TOKENS,
            cost_nano_usd=45_900,
            prices=UnitPrices(input_nano_usd_per_mtok=150_000_000, output_nano_usd_per_mtok=600_000_000),
        )
    ],
    source=USAGE_SOURCE_REPORTED,
    cost_nano_usd=45_900,
    cost_source=COST_SOURCE_CATALOGUE,
    price_version="bench",
)


@asynccontextmanager
async def pairs(job: PairsJob) -> AsyncIterator[Call]:
    """Give a call that reserves a batch and settles it, and checks that all of it was granted and counted."""
    holder = new_uuid7(datetime.now(UTC))
    attributions = itertools.cycle(
        _attribution(agent_id, owner_id) for agent_id, owner_id in zip(job.agent_ids, job.owner_ids, strict=True)
    )
    async with open_connection(job.metering) as connection:
        reserve = bytes_call(connection, "byok.metering.v1.AdmissionService/ReserveBatch")
        settle = bytes_call(connection, "byok.metering.v1.AdmissionService/SettleBatch")

        async def call() -> int:
            items = [_reserve_item(holder, next(attributions)) for _ in range(job.batch)]
            reserved = ReserveBatchResponse.FromString(
                await reserve(ReserveBatchRequest(items=items).SerializeToString())
            )
            refused = [result for result in reserved.results if not result.HasField("grant")]
            if refused:
                raise BenchError(f"{len(refused)} of {len(items)} reserves refused: {refused[:1]}")
            truths = [_settle_item(item, result.grant) for item, result in zip(items, reserved.results, strict=True)]
            settled = SettleBatchResponse.FromString(await settle(SettleBatchRequest(items=truths).SerializeToString()))
            missed = [result for result in settled.results if not result.HasField("settled")]
            if missed or len(settled.results) != job.batch:
                raise BenchError(f"{len(missed)} of {len(items)} settles refused: {missed[:1]}")
            return job.batch

        yield call


def _attribution(agent_id: str, owner_id: str) -> Attribution:
    now = datetime.now(UTC)
    return Attribution(
        account=Account(owner_id=owner_id),
        agent_id=agent_id,
        owner_id=owner_id,
        operation=OPERATION_GUARDRAIL_EVALUATION,
        payer=PAYER_OWNER,
        key_id=new_uuid7(now),
        lease_id=new_uuid7(now),
        provider="openai",
        model=MODEL,
        binding_index=1,
    )


def _reserve_item(holder: str, attribution: Attribution) -> ReserveItem:
    return ReserveItem(
        call=CallIdentity(request_id=new_uuid7(datetime.now(UTC)), call_index=0, holder=holder),
        attribution=attribution,
        estimate=_ESTIMATE,
        body_hash=_BODY_HASH,
        hold_ttl=_HOLD_TTL,
    )


def _settle_item(item: ReserveItem, grant: Grant) -> SettleItem:
    reserve_time = Timestamp()
    reserve_time.FromDatetime(grant.expire_time.ToDatetime() - timedelta(seconds=_HOLD_TTL.seconds))
    return SettleItem(
        reservation_id=grant.reservation_id,
        call=item.call,
        attribution=item.attribution,
        usage=_USAGE,
        final=True,
        body_hash=_BODY_HASH,
        estimate=_ESTIMATE,
        granted_output_tokens=grant.granted_output_tokens,
        reserve_time=reserve_time,
        provider_latency=_LATENCY,
        attempt=grant.attempt,
    )
