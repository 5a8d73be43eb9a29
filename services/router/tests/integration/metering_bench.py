"""A Metering that fails as a test tells it to, and a client of it over real gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from typing_extensions import override

from byok.metering.v1 import admission_service_pb2 as pb
from byok.metering.v1 import reservation_pb2
from byok.metering.v1.admission_service_pb2_grpc import (
    AdmissionServiceServicer,
    AdmissionServiceStub,
    add_AdmissionServiceServicer_to_server,
)
from catalogue.models import Operation
from router.adapters.metering_client import MeteringClient, MeteringLimits
from router.adapters.settlement_journal import SettlementJournal
from router.domain.leases import Payer, PlatformCause
from router.domain.receipts import CostSource, PricedUsage, UsageSource
from router.domain.reservations import Attribution, Charge, Estimate, Grant, Reserve
from servicekit.clock import SystemClock
from servicekit.wire import grpc_code, status_trailers
from services.router.tests.kit import OWNER
from testkit.waiting import eventually

USAGE = PricedUsage(
    models=(), source=UsageSource.REPORTED, cost_nano_usd=5, cost_source=CostSource.CATALOGUE, price_version="v"
)
EXPIRES = datetime(2026, 1, 15, 12, 10, tzinfo=UTC)


class FakeMetering(AdmissionServiceServicer):
    """A Metering that grants and settles, unless a test tells it otherwise."""

    def __init__(self) -> None:
        self.reserved: list[reservation_pb2.ReserveItem] = []
        self.settled: list[reservation_pb2.SettleItem] = []
        self.released: list[reservation_pb2.ReleaseItem] = []
        self.refusal: Status | None = None
        self.final: reservation_pb2.FinalOutcome | None = None
        self.down: set[str] = set()
        self.slow: dict[str, asyncio.Event] = {}
        self.generation = 1
        self.is_short = False
        self.durable = 0
        self.arrived = asyncio.Event()

    async def _enter(self, name: str, context: Any) -> None:
        self.arrived.set()
        if name in self.slow:
            await self.slow[name].wait()
        if name in self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")

    @override
    async def ReserveBatch(self, request: pb.ReserveBatchRequest, context: Any) -> pb.ReserveBatchResponse:
        self.reserved.extend(request.items)
        await self._enter("ReserveBatch", context)
        return pb.ReserveBatchResponse(results=[self._reserve(item) for item in request.items])

    def _reserve(self, item: reservation_pb2.ReserveItem) -> reservation_pb2.ReserveResult:
        if self.refusal is not None:
            return reservation_pb2.ReserveResult(error=self.refusal)
        if self.final is not None:
            return reservation_pb2.ReserveResult(final_outcome=self.final)
        grant = reservation_pb2.Grant(
            reservation_id=f"{item.call.request_id}/{item.call.call_index}", attempt=1, granted_output_tokens=77
        )
        grant.expire_time.FromDatetime(EXPIRES)
        return reservation_pb2.ReserveResult(grant=grant)

    @override
    async def SettleBatch(self, request: pb.SettleBatchRequest, context: Any) -> pb.SettleBatchResponse:
        await self._enter("SettleBatch", context)
        results = []
        for item in request.items:
            self.settled.append(item)
            if self.refusal is not None:
                results.append(reservation_pb2.SettleResult(error=self.refusal))
                continue
            position = reservation_pb2.OutboxPosition(
                partition=1, generation=self.generation, sequence=len(self.settled)
            )
            results.append(reservation_pb2.SettleResult(settled=reservation_pb2.Settled(position=position)))
        return pb.SettleBatchResponse(results=results[1:] if self.is_short else results)

    @override
    async def ReleaseBatch(self, request: pb.ReleaseBatchRequest, context: Any) -> pb.ReleaseBatchResponse:
        await self._enter("ReleaseBatch", context)
        self.released.extend(request.items)
        done = reservation_pb2.ReleaseResult(released=reservation_pb2.Released())
        return pb.ReleaseBatchResponse(results=[done] * len(request.items))

    @override
    async def ExtendBatch(self, request: pb.ExtendBatchRequest, context: Any) -> pb.ExtendBatchResponse:
        raise AssertionError

    @override
    async def Lookup(self, request: pb.LookupRequest, context: Any) -> pb.LookupResponse:
        await self._enter("Lookup", context)
        if self.final is None and self.refusal is not None:
            await context.abort(grpc_code(self.refusal), self.refusal.message, status_trailers(self.refusal))
        if self.final is None:
            return pb.LookupResponse(state=pb.OPERATION_STATE_UNKNOWN)
        return pb.LookupResponse(state=pb.OPERATION_STATE_FINAL, final_outcome=self.final)

    @override
    async def ListWatermarks(self, request: pb.ListWatermarksRequest, context: Any) -> pb.ListWatermarksResponse:
        await self._enter("ListWatermarks", context)
        mark = reservation_pb2.OutboxPosition(partition=1, generation=self.generation, sequence=self.durable)
        return pb.ListWatermarksResponse(watermarks=[mark])


def _limits(**changes: Any) -> MeteringLimits:
    values: dict[str, Any] = {
        "call_timeout": timedelta(seconds=2),
        "settle_wait": timedelta(milliseconds=300),
        "reserve_tries": 2,
        "resend_interval": timedelta(milliseconds=20),
        "batch_max": 64,
        "queue_max": 100,
        "in_flight_max": 2,
        "linger_max": timedelta(milliseconds=5),
    }
    return MeteringLimits(**values | changes)


class Bench:
    """A Metering, its client and the client's journal."""

    def __init__(self, metering: FakeMetering, client: MeteringClient, journal: SettlementJournal) -> None:
        self.metering = metering
        self.client = client
        self.journal = journal

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds, with the client looking after its journal."""
        keeping = asyncio.create_task(self.client.keep_settling())

        async def look() -> bool:
            return holds()

        try:
            await eventually(look, bool, timeout_seconds=5)
        finally:
            keeping.cancel()


@asynccontextmanager
async def opened(*, entries_max: int = 50, **changes: Any) -> AsyncIterator[Bench]:
    """Run a Metering and a client of it."""
    metering = FakeMetering()
    server = grpc.aio.server()
    add_AdmissionServiceServicer_to_server(metering, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    journal = SettlementJournal(entries_max)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = MeteringClient(
            AdmissionServiceStub(channel),
            journal=journal,
            holder="holder-1",
            limits=_limits(**changes),
            clock=SystemClock(),
            active=lambda: 1,
        )
        try:
            yield Bench(metering, client, journal)
        finally:
            for event in metering.slow.values():
                event.set()
            await client.aclose()
            await server.stop(None)


def reserve(name: str = "request-1", *, call_index: int = 0, cause: PlatformCause | None = None) -> Reserve:
    """Return a reservation to ask for."""
    return Reserve(
        request_id=name,
        call_index=call_index,
        attribution=Attribution(
            account=OWNER,
            agent_id="agent-1",
            owner_id="owner-1",
            operation=Operation.GUARDRAIL_EVALUATION,
            payer=Payer.OWNER if cause is None else Payer.PLATFORM,
            provider="openai",
            model="gpt-4o-mini",
            key_id="key-1",
            lease_id="lease-1",
            binding_index=3,
            platform_cause=cause,
        ),
        estimate=Estimate(
            input_tokens=10,
            fixed_cost_nano_usd=100,
            output_nano_usd_per_mtok=1_000_000,
            output_tokens_min=5,
            output_tokens_max=100,
        ),
        body_hash=bytes(32),
        hold_ttl=timedelta(minutes=2),
    )


async def granted(bench: Bench, name: str = "request-1") -> tuple[Reserve, Grant]:
    """Take a hold."""
    asked = reserve(name)
    grant = await bench.client.reserve(asked)
    assert isinstance(grant, Grant)
    return asked, grant


def charge(asked: Reserve, grant: Grant, *, usage: PricedUsage | None = USAGE, is_final: bool = True) -> Charge:
    """Return the truth about a call."""
    return Charge(
        reserve=asked,
        grant=grant,
        usage=usage,
        provider_latency=timedelta(milliseconds=3),
        is_final=is_final,
        sealed_answer=b"sealed",
    )


def refusal(code: grpc.StatusCode, reason: str, **metadata: str) -> Status:
    """Return what Metering says of one item."""
    status = Status(code=code.value[0], message="no")
    status.details.add().Pack(ErrorInfo(reason=reason, domain="byok.metering", metadata=metadata))
    return status
