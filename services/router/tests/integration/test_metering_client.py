"""The client of Metering over real gRPC, against a Metering that fails in every way that matters to money."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import grpc
import pytest
from google.rpc.error_details_pb2 import QuotaFailure
from google.rpc.status_pb2 import Status

from byok.metering.v1 import reservation_pb2
from router.domain.leases import Payer, PlatformCause
from router.domain.receipts import Settlement
from router.domain.refusals import (
    CallClosedError,
    CapReachedError,
    CustodyLogRolledBackError,
    InProgressError,
    KeyRequiredError,
    RequestIdReusedError,
    RouterError,
    RouterOverloadedError,
    SuiteUnavailableError,
)
from router.domain.reservations import FinalOutcome, Grant, Release
from services.router.tests.integration.metering_bench import EXPIRES, charge, granted, opened, refusal, reserve


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
        (refusal(grpc.StatusCode.FAILED_PRECONDITION, "CUSTODY_LOG_ROLLED_BACK"), CustodyLogRolledBackError),
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


async def test_a_lookup_tells_that_nothing_may_begin() -> None:
    """Unless the operation is closed: what was paid is given."""
    async with opened() as bench:
        bench.metering.refusal = refusal(grpc.StatusCode.FAILED_PRECONDITION, "CUSTODY_LOG_ROLLED_BACK")
        with pytest.raises(CustodyLogRolledBackError):
            await bench.client.lookup(request_id="r", agent_id="a", account=None, body_hash=bytes(32))
        bench.metering.final = reservation_pb2.FinalOutcome(sealed_answer=b"kept")
        assert await bench.client.lookup(request_id="r", agent_id="a", account=None, body_hash=bytes(32)) is not None


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
