"""The client of Metering over real gRPC, against a Metering that fails in every way that matters to money."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, QuotaFailure
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
from router.domain.receipts import CostSource, PricedUsage, Settlement, UsageSource
from router.domain.refusals import (
    CallClosedError,
    CapReachedError,
    InProgressError,
    KeyRequiredError,
    RequestIdReusedError,
    RouterError,
    RouterOverloadedError,
    SuiteUnavailableError,
)
from router.domain.reservations import Attribution, Charge, Estimate, FinalOutcome, Grant, Release, Reserve
from servicekit.clock import SystemClock
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


async def test_a_hold_is_granted_and_settled_and_durable() -> None:
    """The settlement carries all that it needs to be applied alone, and stays in the journal until it is durable."""
    async with opened() as bench:
        asked, grant = await granted(bench)
        assert grant.reserve_time == EXPIRES - timedelta(minutes=2)
        assert bench.journal.open_holds == 1
        assert await bench.client.settle(charge(asked, grant)) is Settlement.SETTLED
        item = bench.metering.settled[0]
        assert (item.final, item.in_suspense, item.sealed_answer) == (True, False, b"sealed")
        assert (item.attribution, item.estimate) == (
            bench.metering.reserved[0].attribution,
            bench.metering.reserved[0].estimate,
        )
        assert (bench.journal.size, bench.journal.open_holds) == (1, 0)
        bench.metering.durable = 1
        await bench.until(lambda: bench.journal.size == 0)


async def test_many_calls_share_batches() -> None:
    """Sixty reserves at once are far fewer than sixty calls."""
    async with opened() as bench:
        asked = [reserve(f"request-{number}") for number in range(60)]
        grants = await asyncio.gather(*(bench.client.reserve(each) for each in asked))
        assert [grant.reservation_id for grant in grants if isinstance(grant, Grant)] == [
            f"request-{number}/0" for number in range(60)
        ]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (refusal(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"), RequestIdReusedError),
        (refusal(grpc.StatusCode.ABORTED, "IN_PROGRESS"), InProgressError),
        (refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "CAP_REACHED", limitId="l"), CapReachedError),
        (refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"), RouterOverloadedError),
        (refusal(grpc.StatusCode.FAILED_PRECONDITION, "PLATFORM_NOT_PAYING"), KeyRequiredError),
        (refusal(grpc.StatusCode.UNAVAILABLE, "REBUILDING"), SuiteUnavailableError),
    ],
)
async def test_a_denial_is_typed(status: Status, expected: type[RouterError]) -> None:
    """What Metering refuses reads in our own words; nothing is left behind."""
    async with opened() as bench:
        bench.metering.refusal = status
        with pytest.raises(expected):
            await bench.client.reserve(reserve(cause=PlatformCause.NO_KEY))
        assert bench.journal.open_holds == 0


async def test_a_caps_details_are_handed_on() -> None:
    """The limit's facts and the QuotaFailure come through."""
    status = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "CAP_REACHED", limitId="l-1", resetTime="t", remaining="3")
    quota = QuotaFailure()
    quota.violations.add(subject="owner-1", description="daily cost")
    status.details.add().Pack(quota)
    async with opened() as bench:
        bench.metering.refusal = status
        with pytest.raises(CapReachedError) as refused:
            await bench.client.reserve(reserve())
    assert refused.value.facts == {"limit_id": "l-1", "reset_time": "t", "remaining": "3"}
    assert [violation.subject for violation in refused.value.quota] == ["owner-1"]


async def test_an_operation_that_is_closed_is_given_again() -> None:
    """Reserve and lookup both say how it ended."""
    async with opened() as bench:
        bench.metering.final = reservation_pb2.FinalOutcome(sealed_answer=b"kept")
        outcome = await bench.client.reserve(reserve())
        assert isinstance(outcome, FinalOutcome)
        assert outcome.sealed_answer == b"kept"
        found = await bench.client.lookup(request_id="r", agent_id="a", account=None, body_hash=bytes(32))
        assert found == outcome


async def test_a_reserve_without_an_answer_is_tried_again_and_then_released() -> None:
    """It may stand at Metering: what we gave up, we also release."""
    async with opened() as bench:
        bench.metering.down.add("ReserveBatch")
        with pytest.raises(SuiteUnavailableError):
            await bench.client.reserve(reserve())
        assert len(bench.metering.reserved) == 2
        assert len({item.call.call_index for item in bench.metering.reserved}) == 1
        await bench.until(lambda: len(bench.metering.released) == 1)
        assert bench.metering.released[0].call == bench.metering.reserved[0].call


async def test_a_caller_who_leaves_while_reserving_leaves_no_hold() -> None:
    """The grant that comes too late is released by its id."""
    async with opened() as bench:
        bench.metering.slow["ReserveBatch"] = asyncio.Event()
        call = asyncio.create_task(bench.client.reserve(reserve()))
        await bench.metering.arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        bench.metering.slow["ReserveBatch"].set()
        await bench.until(lambda: len(bench.metering.released) == 1)
        assert bench.metering.released[0].reservation_id == "request-1/0"
        assert bench.journal.open_holds == 0


async def test_a_settlement_survives_a_metering_that_is_away() -> None:
    """The answer goes out as PENDING; the settlement goes through when Metering is back, once."""
    async with opened() as bench:
        asked, grant = await granted(bench)
        bench.metering.down.add("SettleBatch")
        assert await bench.client.settle(charge(asked, grant)) is Settlement.PENDING
        assert bench.journal.size == 1
        bench.metering.down.clear()
        bench.metering.durable = 1
        await bench.until(lambda: bench.journal.size == 0)
        assert len(bench.metering.settled) == 1


async def test_a_slow_settlement_does_not_keep_the_answer_waiting() -> None:
    """After `settle_wait` the answer goes out; the settlement is not withdrawn."""
    async with opened(settle_wait=timedelta(milliseconds=20)) as bench:
        asked, grant = await granted(bench)
        bench.metering.slow["SettleBatch"] = asyncio.Event()
        assert await bench.client.settle(charge(asked, grant)) is Settlement.PENDING
        bench.metering.slow["SettleBatch"].set()
        bench.metering.durable = 1
        await bench.until(lambda: bench.journal.size == 0)
        assert len(bench.metering.settled) == 1


async def test_a_settlement_is_sent_again_into_a_rebuilt_metering() -> None:
    """A new generation may lack what the old one had taken."""
    async with opened() as bench:
        asked, grant = await granted(bench)
        await bench.client.settle(charge(asked, grant))
        bench.metering.generation = 2
        await bench.until(lambda: len(bench.metering.settled) == 2)
        bench.metering.durable = 2
        await bench.until(lambda: bench.journal.size == 0)
        assert bench.metering.settled[0] == bench.metering.settled[1]


async def test_a_release_survives_a_metering_that_is_away() -> None:
    """A hold that was given up is given back once Metering is there again."""
    async with opened() as bench:
        asked, grant = await granted(bench)
        bench.metering.down.add("ReleaseBatch")
        bench.client.release_later(Release(reserve=asked, grant=grant))
        bench.metering.arrived.clear()
        await bench.metering.arrived.wait()
        bench.metering.down.clear()
        await bench.until(lambda: bench.journal.size == 0)
        assert len(bench.metering.released) == 1


async def test_an_answer_of_the_wrong_length_settles_nothing_and_loses_nothing() -> None:
    """A Metering that answers for fewer items than it was sent is asked again."""
    async with opened() as bench:
        asked, grant = await granted(bench)
        bench.metering.is_short = True
        assert await bench.client.settle(charge(asked, grant)) is Settlement.PENDING
        bench.metering.is_short = False
        bench.metering.durable = 2
        await bench.until(lambda: bench.journal.size == 0)


async def test_a_full_queue_loses_no_settlement() -> None:
    """What does not even get into the queue goes out with the next look at the journal."""
    async with opened(queue_max=1, in_flight_max=1, settle_wait=timedelta(milliseconds=20)) as bench:
        asked, grant = await granted(bench)
        bench.metering.slow["ReserveBatch"] = asyncio.Event()
        bench.metering.arrived.clear()
        crowd = [asyncio.create_task(bench.client.reserve(reserve("in-flight")))]
        await bench.metering.arrived.wait()
        crowd.append(asyncio.create_task(bench.client.reserve(reserve("queued"))))
        await asyncio.sleep(0)
        assert await bench.client.settle(charge(asked, grant)) is Settlement.PENDING
        bench.metering.slow["ReserveBatch"].set()
        await asyncio.gather(*crowd, return_exceptions=True)
        bench.metering.durable = 1
        await bench.until(lambda: bench.journal.size == 0)
        assert len(bench.metering.settled) == 1


async def test_a_final_settlement_on_its_way_is_answered_from_the_journal() -> None:
    """A caller who comes again while Metering is away is given the answer that was paid for, and buys nothing."""
    async with opened() as bench:
        asked, grant = await granted(bench)
        bench.metering.down.add("SettleBatch")
        assert await bench.client.settle(charge(asked, grant)) is Settlement.PENDING
        again = await bench.client.reserve(asked)
        assert isinstance(again, FinalOutcome)
        assert (again.sealed_answer, again.payer) == (b"sealed", Payer.OWNER)
        found = await bench.client.lookup(request_id="request-1", agent_id="agent-1", account=None, body_hash=bytes(32))
        assert found == again
        assert len(bench.metering.reserved) == 1
        with pytest.raises(RequestIdReusedError):
            await bench.client.reserve(replace(asked, body_hash=b"x" * 32))
        bench.metering.down.clear()
        bench.metering.durable = 1
        await bench.until(lambda: bench.journal.size == 0)
        assert isinstance(await bench.client.reserve(reserve("request-1", call_index=1)), Grant)


async def test_no_two_calls_run_on_one_hold() -> None:
    """What Metering grants again because our settlement or release is still on its way is not used."""
    async with opened() as bench:
        asked, grant = await granted(bench)
        bench.metering.down.update({"SettleBatch", "ReleaseBatch"})
        await bench.client.settle(charge(asked, grant, usage=None, is_final=False))
        with pytest.raises(CallClosedError):
            await bench.client.reserve(asked)
        other, held = await granted(bench, "request-2")
        bench.client.release_later(Release(reserve=other, grant=held))
        with pytest.raises(CallClosedError):
            await bench.client.reserve(other)
        assert bench.journal.open_holds == 0


async def test_an_unknown_outcome_is_settled_in_suspense() -> None:
    """Without a usage the hold stays at its estimate."""
    async with opened() as bench:
        asked, grant = await granted(bench)
        assert await bench.client.settle(charge(asked, grant, usage=None)) is Settlement.SUSPENSE
        assert bench.metering.settled[0].in_suspense
        assert not bench.metering.settled[0].HasField("usage")


async def test_a_settlement_that_metering_will_never_take_is_not_sent_for_ever() -> None:
    """A refusal for good is logged and dropped; the journal does not fill up with it."""
    async with opened() as bench:
        asked, grant = await granted(bench)
        bench.metering.refusal = refusal(grpc.StatusCode.FAILED_PRECONDITION, "ALREADY_SETTLED")
        assert await bench.client.settle(charge(asked, grant)) is Settlement.PENDING
        assert bench.journal.size == 0


async def test_a_full_journal_takes_no_new_hold() -> None:
    """With Metering away for long, work stops before settlements could be lost."""
    async with opened(entries_max=2) as bench:
        first, second = await granted(bench, "request-1"), await granted(bench, "request-2")
        with pytest.raises(RouterOverloadedError):
            await bench.client.reserve(reserve("request-3"))
        bench.client.release_later(Release(reserve=first[0], grant=first[1]))
        await bench.until(lambda: len(bench.metering.released) == 1 and bench.journal.size == 0)
        await granted(bench, "request-3")
        bench.client.settle_later(charge(*second))


async def test_draining_waits_until_everything_is_durable() -> None:
    """The process does not end with a settlement that only it knows."""
    async with opened() as bench:
        asked, grant = await granted(bench)
        bench.metering.down.add("SettleBatch")
        bench.client.settle_later(charge(asked, grant))
        draining = asyncio.create_task(bench.client.drain())
        await bench.metering.arrived.wait()
        assert not draining.done()
        bench.metering.down.clear()
        bench.metering.durable = 1
        await asyncio.wait_for(draining, 5)
        assert len(bench.metering.settled) == 1
