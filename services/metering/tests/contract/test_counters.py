"""One suite for what counters do as time passes and stores are lost, run against memory and against Redis' scripts."""

from collections.abc import AsyncIterator
from datetime import timedelta

import msgspec
import pytest

from metering.domain.enums import Operation, Unit, Window
from metering.domain.reservations import (
    Denied,
    Fenced,
    NeedsAccount,
    NeedsCalendar,
)
from metering.domain.windows import calendar_at, from_ms
from metering.ports import AccountLoaded, AccountMoved, LoadStarted
from services.metering.tests.contract.benches import (
    ACCOUNT,
    Bench,
    asking,
    limit,
    memory_bench,
    minute_of,
    redis_bench,
    snapshot,
    telling,
)

CALLS = limit(1, Unit.CALLS, 3)
TOKENS = limit(2, Unit.TOKENS, 10_000)
COST = limit(3, Unit.COST, 10_000)


class CountersContract:
    """What every store's counters do: windows, accounts, versions of limits, generations."""

    async def test_a_new_day_starts_afresh_and_a_late_settlement_counts_in_its_own(self, bench: Bench) -> None:
        """A hold belongs to the window that it was reserved in."""
        await bench.load(COST)
        await bench.advance(timedelta(hours=11, minutes=58))
        command = asking(await bench.new_id(), ttl=timedelta(minutes=15))
        await bench.granted(command)
        await bench.advance(timedelta(minutes=3))
        tomorrow = asking(await bench.new_id())
        assert isinstance(await bench.reserve(tomorrow), NeedsCalendar)
        await bench.roll()
        assert await bench.used() == [(0, 0, 0)]
        await bench.settle(telling(command, cost=9_000))
        assert await bench.used() == [(0, 0, 0)]
        await bench.granted(tomorrow)
        assert await bench.used() == [(3_000, 3_000, 0)]

    async def test_a_day_is_the_accounts_own_unless_the_limit_is_the_platforms(self, bench: Bench) -> None:
        """In Tokyo the day ends at 15:00 UTC; a platform's limit goes by UTC."""
        await bench.load(
            limit(1, Unit.CALLS, 9),
            limit(2, Unit.CALLS, 9, is_utc=True, operation=Operation.GUARDRAIL_EVALUATION),
            time_zone="Asia/Tokyo",
        )
        await bench.granted(asking(await bench.new_id()))
        await bench.advance(timedelta(hours=3))
        assert isinstance(await bench.reserve(asking(await bench.new_id())), NeedsCalendar)
        await bench.roll(time_zone="Asia/Tokyo")
        assert [counted for counted, _, _ in await bench.used()] == [0, 1]

    async def test_an_old_calendar_never_takes_the_place_of_a_newer_one(self, bench: Bench) -> None:
        """Windows move on only."""
        await bench.load(COST)
        yesterday = calendar_at(from_ms(await bench.time.now_ms()), "UTC")
        await bench.granted(asking(await bench.new_id()))
        await bench.advance(timedelta(hours=13))
        await bench.roll()
        await bench.counters.roll(ACCOUNT, bench.licence, yesterday)
        assert await bench.used() == [(0, 0, 0)]

    async def test_a_minute_starts_afresh_by_itself(self, bench: Bench) -> None:
        """Minutes and hours need no calendar."""
        await bench.load(limit(1, Unit.CALLS, 1, window=Window.MINUTE), limit(2, Unit.CALLS, 9, window=Window.HOUR))
        await bench.granted(asking(await bench.new_id()))
        refused = await bench.reserve(asking(await bench.new_id()))
        assert isinstance(refused, Denied)
        end = (minute_of(await bench.time.now_ms()) + 1) * 60_000
        assert refused.denials[0].reset_time == from_ms(end)
        await bench.advance(timedelta(minutes=1))
        await bench.granted(asking(await bench.new_id()))
        assert [counted for counted, _, _ in await bench.used()] == [1, 2]

    async def test_a_clock_that_steps_back_opens_no_window_again(self, bench: Bench) -> None:
        """Time is the highest that was seen."""
        await bench.load(limit(1, Unit.CALLS, 1, window=Window.MINUTE))
        await bench.granted(asking(await bench.new_id()))
        await bench.time.step_back(timedelta(minutes=2))
        assert isinstance(await bench.reserve(asking(await bench.new_id())), Denied)

    async def test_an_account_that_is_not_loaded_is_refused(self, bench: Bench) -> None:
        """Unknown is never unlimited, and neither is being loaded."""
        assert await bench.reserve(asking(await bench.new_id())) == NeedsAccount()
        await bench.load(CALLS)
        await bench.counters.begin_load(ACCOUNT, bench.licence, version=9, stand_still_ms=5_000)
        assert await bench.reserve(asking(await bench.new_id())) == NeedsAccount(is_loading=True)
        await bench.advance(timedelta(seconds=6))
        await bench.granted(asking(await bench.new_id()))

    async def test_loading_keeps_what_is_held(self, bench: Bench) -> None:
        """A new limit counts the holds that stand, beside what the ledger says."""
        await bench.load(CALLS)
        await bench.granted(asking(await bench.new_id()))
        await bench.load(CALLS, COST, settled=1)
        assert await bench.used() == [(2, 1, 0), (3_001, 3_000, 0)]

    async def test_versions_are_applied_only_upward(self, bench: Bench) -> None:
        """An older configuration that arrives late changes nothing."""
        await bench.load(CALLS)
        await bench.load(limit(1, Unit.CALLS, 1))
        now = await bench.time.now_ms()
        old = snapshot(ACCOUNT, (CALLS,), calendar_at(from_ms(now), "UTC"), LoadStarted(now, 0), version=1)
        assert await bench.counters.load(old, bench.licence) == AccountLoaded(2)
        await bench.granted(asking(await bench.new_id()))
        assert isinstance(await bench.reserve(asking(await bench.new_id())), Denied)

    async def test_a_fold_that_was_overtaken_is_refused(self, bench: Bench) -> None:
        """What was written since the fold would be missing."""
        await bench.load(CALLS)
        command = asking(await bench.new_id())
        await bench.granted(command)
        started = await bench.counters.begin_load(ACCOUNT, bench.licence, version=7, stand_still_ms=5_000)
        assert isinstance(started, LoadStarted)
        await bench.settle(telling(command))
        calendar = calendar_at(from_ms(started.now_ms), "UTC")
        outcome = await bench.counters.load(snapshot(ACCOUNT, (CALLS,), calendar, started, version=7), bench.licence)
        assert outcome == AccountMoved(started.sequence + 1)

    async def test_another_generation_is_refused_everywhere(self, bench: Bench) -> None:
        """A replica of another history gets nothing and changes nothing."""
        await bench.load(CALLS)
        command = asking(await bench.new_id())
        other = msgspec.structs.replace(bench.licence, generations=(2,) * 256)
        assert await bench.admission.reserve([command], other) == [Fenced()]
        assert await bench.admission.settle([telling(command)], other) == [Fenced()]
        assert await bench.counters.read(ACCOUNT, other) == Fenced()
        assert await bench.used() == [(0, 0, 0)]


class TestMemory(CountersContract):
    """The store that tests use."""

    @pytest.fixture
    async def bench(self) -> AsyncIterator[Bench]:
        """Open the memory adapter."""
        async with memory_bench() as opened:
            yield opened


class TestRedis(CountersContract):
    """The store that runs."""

    @pytest.fixture
    async def bench(self, redis_server: str) -> AsyncIterator[Bench]:
        """Open the Redis adapter."""
        async with redis_bench(redis_server) as opened:
            yield opened
