"""Redis is wiped, restarted, rolled back: nothing is admitted, then everything is as it was."""

import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis.asyncio

from metering.domain.enums import CallState, Unit, Window
from metering.domain.errors import (
    CapReachedError,
    DependencyUnavailableError,
    EvictingStoreError,
    RebuildingError,
    ReservationClosedError,
)
from metering.usecases.final_outcomes import FinalOutcome
from metering.usecases.settle_batch import Settlement
from services.metering.tests.rig import Rig, asked, open_rig, released, settled
from testkit.redis import EmbeddedRedis


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    """Return a Redis that the test may kill."""
    async with EmbeddedRedis(tmp_path / "redis", appendfsync="always") as server:
        yield server


@pytest.fixture
async def lonely(metering_dsn: str, own_redis: EmbeddedRedis) -> AsyncIterator[Rig]:
    """Return a replica on that Redis."""
    async with open_rig(metering_dsn, own_redis.url) as opened:
        await opened.replica.keeper.round()
        assert await opened.replica.keeper.round()
        yield opened


async def make_use(rig: Rig) -> dict[str, tuple[int, int, int]]:
    """Settle, hold, put into suspense and release; return the counters."""
    account = await rig.register("owner-1", "agent-1")
    await rig.limit(account, Unit.CALLS, 1_000, window=Window.MONTH)
    for number in range(5):
        request = asked(rig, account, "agent-1")
        grant = await rig.granted(request)
        if number < 2:
            await rig.settle(settled(request, grant))
        elif number == 2:
            await rig.settle(settled(request, grant, in_suspense=True, is_final=False))
        elif number == 3:
            await rig.admission.release([released(request)])
    return await rig.counters(account)


async def recover(rig: Rig) -> None:
    """Let the keeper see the loss and rebuild; a connection that is found dead costs a round."""
    rounds = [await rig.replica.keeper.round() for _ in range(3)]
    assert rounds[-1], "not open after three rounds"


async def test_a_wiped_redis_admits_nothing_and_is_rebuilt_with_the_same_counters(rig: Rig) -> None:
    """FLUSHALL under the same run id is a loss too."""
    before = await make_use(rig)
    await rig.flush()
    async with redis.asyncio.from_url(rig.redis_url) as client:
        await client.flushall()
    account = await rig.register("owner-1", "agent-1")
    refused = await rig.reserve(asked(rig, account, "agent-1"))
    assert isinstance(refused, RebuildingError)
    assert refused.retry_after is not None
    assert rig.replica.gate.suspicion.is_set()
    await recover(rig)
    assert await rig.counters(account) == before
    generations = {row["generation"] for row in await rig.fetch("SELECT generation FROM partitions")}
    assert generations == {2}


async def test_a_restarted_redis_is_another_one_and_its_outbox_is_drained(
    lonely: Rig, own_redis: EmbeddedRedis
) -> None:
    """What survived and was not in the ledger yet goes there before counters are rebuilt."""
    before = await make_use(lonely)
    own_redis.kill9()
    own_redis.start()
    account = await lonely.register("owner-1", "agent-1")
    refused = await lonely.reserve(asked(lonely, account, "agent-1"))
    assert isinstance(refused, RebuildingError)
    await recover(lonely)
    assert await lonely.ledger_cost() == 2_000_000
    assert await lonely.counters(account) == before


async def test_after_a_rebuild_old_calls_are_still_known(lonely: Rig, own_redis: EmbeddedRedis) -> None:
    """Settled ids, holds and suspense survive: repeats are repeats, holds settle, another body is refused."""
    account = await lonely.register("owner-1", "agent-1")
    done, held = asked(lonely, account, "agent-1"), asked(lonely, account, "agent-1")
    done_grant, held_grant = await lonely.granted(done), await lonely.granted(held)
    await lonely.settle(settled(done, done_grant, sealed_answer=b"sealed"))
    await lonely.flush()
    own_redis.kill9()
    own_redis.start()
    await recover(lonely)

    again = await lonely.settle(settled(done, done_grant))
    assert isinstance(again, Settlement)
    assert again.is_repeat
    replayed = await lonely.reserve(done)
    assert isinstance(replayed, FinalOutcome)
    assert replayed.sealed_answer == b"sealed"
    same = await lonely.granted(held)
    assert same.reservation_id == held_grant.reservation_id
    late = await lonely.settle(settled(held, held_grant))
    assert isinstance(late, Settlement)
    assert (late.is_repeat, late.generation) == (False, 2)
    await lonely.flush()
    assert await lonely.ledger_cost() == 2_000_000
    assert (await lonely.counters(account))["COST/DAY/"] == (2_000_000, 0, 0)


async def test_a_settlement_that_redis_lost_is_sent_again_and_counted_once(
    lonely: Rig, own_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """Redis comes back from an older copy: what Postgres has stands, what it lacks is sent again by its Router."""
    account = await lonely.register("owner-1", "agent-1")
    durable, lost = asked(lonely, account, "agent-1"), asked(lonely, account, "agent-1")
    durable_grant, lost_grant = await lonely.granted(durable), await lonely.granted(lost)
    await lonely.flush()
    own_redis.stop()
    shutil.copytree(own_redis.data_dir, tmp_path / "older")
    own_redis.start()
    await recover(lonely)

    await lonely.settle(settled(durable, durable_grant))
    await lonely.flush()
    first = await lonely.settle(settled(lost, lost_grant, cost=7))
    assert isinstance(first, Settlement)
    own_redis.kill9()
    shutil.rmtree(own_redis.data_dir)
    shutil.copytree(tmp_path / "older", own_redis.data_dir)
    own_redis.start()
    await recover(lonely)

    (watermark,) = [each for each in await lonely.admission.watermarks() if each.partition == first.partition]
    assert watermark.generation > first.generation, "the Router sees that its settlement is not durable"
    assert (await lonely.counters(account))["COST/DAY/"] == (1_000_000, 5_400_000, 0)
    for _ in range(2):
        await lonely.settle(settled(lost, lost_grant, cost=7))
        await lonely.settle(settled(durable, durable_grant))
    await lonely.flush()
    assert await lonely.ledger_cost() == 1_000_007
    assert (await lonely.counters(account))["COST/DAY/"] == (1_000_007, 0, 0)


async def test_a_rebuild_waits_for_the_licences_of_others(
    metering_dsn: str, own_redis: EmbeddedRedis, lonely: Rig
) -> None:
    """A replica that cannot be heard of may still admit on the old history until its licence has ended."""
    async with open_rig(metering_dsn, own_redis.url) as second:
        assert await second.replica.keeper.round()
        own_redis.kill9()
        own_redis.start()
        licences = lonely.replica.stores.licences
        state = await licences.state()
        await licences.give_back(lonely.replica.name)
        assert await licences.begin_rebuild(lonely.replica.name, epoch=state.epoch, life_ms=30_000)
        assert await licences.unexpired() == 1
        identity = await lonely.replica.stores.control.identity()
        assert await second.replica.stores.licences.renew(second.replica.name, identity, life_ms=1_000) is None
        await licences.give_back(second.replica.name)
        assert await licences.unexpired() == 0


async def test_an_ended_licence_admits_nothing_and_settles_still(metering_dsn: str, redis_database: str) -> None:
    """Without word from Postgres admission stops when the licence ends; what was admitted may finish."""
    async with open_rig(metering_dsn, redis_database) as opened:
        await recover(opened)
        account = await opened.register("owner-1", "agent-1")
        request = asked(opened, account, "agent-1")
        grant = await opened.granted(request)
        gate = opened.replica.gate
        licence = gate.enter()
        gate.open(licence, until=opened.clock.monotonic() - 1)
        with pytest.raises(DependencyUnavailableError):
            await opened.reserve(asked(opened, account, "agent-1"))
        assert isinstance(await opened.settle(settled(request, grant)), Settlement)


async def test_a_redis_that_evicts_is_refused(rig: Rig) -> None:
    """An evicted counter reads as unused."""
    async with redis.asyncio.from_url(rig.redis_url) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(EvictingStoreError, match="noeviction"):
                await rig.replica.stores.control.ensure_keeps_everything()
            assert not await rig.replica.keeper.round()
            assert not rig.replica.gate.is_open
        finally:
            await client.config_set("maxmemory-policy", "noeviction")


async def test_a_full_memory_stops_reserves_and_not_settlements(rig: Rig) -> None:
    """Settlements keep the room that is left."""
    account = await rig.register("owner-1", "agent-1")
    request = asked(rig, account, "agent-1")
    grant = await rig.granted(request)
    async with redis.asyncio.from_url(rig.redis_url) as client:
        used = int((await client.info("memory"))["used_memory"])
        await client.config_set("maxmemory", str(int(used / 0.85)))
        try:
            assert await rig.replica.keeper.round()
            with pytest.raises(Exception, match="Nothing new is admitted"):
                await rig.reserve(asked(rig, account, "agent-1"))
            assert isinstance(await rig.settle(settled(request, grant)), Settlement)
        finally:
            await client.config_set("maxmemory", "0")
    assert await rig.replica.keeper.round()
    await rig.granted(asked(rig, account, "agent-1"))


async def test_a_hold_expires_into_suspense_and_is_settled_late(rig: Rig) -> None:
    """Expiry, then the truth: the estimate is replaced in Redis and never reaches the ledger."""
    account = await rig.register("owner-1", "agent-1")
    request = asked(rig, account, "agent-1", ttl=timedelta(milliseconds=1))
    grant = await rig.granted(request)
    await rig.flush()
    assert await rig.replica.expirer.round() == 1
    await rig.flush()
    (hold,) = await rig.fetch("SELECT state FROM holds")
    assert hold["state"] == CallState.SUSPENSE
    assert (await rig.counters(account))["COST/DAY/"] == (0, 0, 5_400_000)
    closed = await rig.reserve(request)
    assert isinstance(closed, ReservationClosedError)
    await rig.settle(settled(request, grant))
    await rig.flush()
    assert await rig.fetch("SELECT * FROM holds") == []
    assert await rig.ledger_cost() == 1_000_000


async def test_posted_suspense_is_corrected_by_the_difference(rig: Rig) -> None:
    """The entries of a reservation add up to the truth, and so do the sums and the counters after a rebuild."""
    account = await rig.register("owner-1", "agent-1")
    await rig.limit(account, Unit.COST, 2**50, window=Window.MONTH)
    request = asked(rig, account, "agent-1")
    grant = await rig.granted(request)
    await rig.settle(settled(request, grant, in_suspense=True, is_final=False))
    async with redis.asyncio.from_url(rig.redis_url) as client:
        for key in await client.keys("{p*}:m"):
            seen = int(await client.hget(key, "t") or 0)
            await client.hset(key, "t", str(seen + 24 * 3_600_000))
    await rig.flush()
    assert await rig.replica.expirer.round() == 1
    await rig.flush()
    assert await rig.ledger_cost() == 5_400_000
    late = await rig.settle(settled(request, grant))
    assert isinstance(late, Settlement)
    await rig.flush()
    assert await rig.ledger_cost() == 1_000_000
    (sums,) = await rig.fetch(
        "SELECT sum(settled_cost_nano_usd)::bigint AS settled, sum(suspense_cost_nano_usd)::bigint AS suspense,"
        " sum(operations)::bigint AS operations FROM usage_quarters"
    )
    assert tuple(sums) == (1_000_000, 0, 1)
    assert [row["kind"] for row in await rig.fetch("SELECT kind FROM ledger_entries ORDER BY kind")] == [2, 3]


async def test_caps_hold_over_a_rebuild(rig: Rig) -> None:
    """Use that was counted before the loss is counted after it."""
    account = await rig.register("owner-1", "agent-1")
    await rig.limit(account, Unit.CALLS, 3)
    for _ in range(3):
        request = asked(rig, account, "agent-1")
        await rig.settle(settled(request, await rig.granted(request)))
    await rig.flush()
    async with redis.asyncio.from_url(rig.redis_url) as client:
        await client.flushall()
    await recover(rig)
    assert isinstance(await rig.reserve(asked(rig, account, "agent-1")), CapReachedError)
