"""One suite for the admission port, run against memory and against Redis' scripts."""

from collections.abc import AsyncIterator
from datetime import timedelta

import msgspec
import pytest

from metering.domain.enums import CallState, EventKind, Operation, OperationState, Payer, ScopeKind, Unit, Window
from metering.domain.licences import Watermark
from metering.domain.limits import Scope
from metering.domain.money import AMOUNT_MAX
from metering.domain.reservations import (
    ATTEMPTS_MAX,
    AlreadySettled,
    CallClosed,
    Closed,
    Denied,
    Estimate,
    Extended,
    Fenced,
    Found,
    Granted,
    InProgress,
    LookupCommand,
    NeedsAccount,
    NeedsCalendar,
    NeedsHistory,
    NotHeld,
    PriorAttempt,
    PriorOperation,
    Released,
    Repeat,
    Reused,
    Settled,
    TooManyAttempts,
)
from metering.domain.windows import calendar_at, from_ms
from metering.ports import History
from services.metering.tests.contract.benches import (
    ACCOUNT,
    OTHER_ROUTER,
    PLAN,
    ROUTER,
    Bench,
    asking,
    limit,
    memory_bench,
    redis_bench,
    telling,
)

CALLS = limit(1, Unit.CALLS, 3)
TOKENS = limit(2, Unit.TOKENS, 10_000)
COST = limit(3, Unit.COST, 10_000)


class AdmissionStoreContract:
    """What every admission store does."""

    async def test_a_hold_stands_in_every_unit_and_the_truth_takes_its_place(self, bench: Bench) -> None:
        """Reserve holds the worst case; settle puts the usage in its place."""
        await bench.load(CALLS, TOKENS, COST)
        command = asking(await bench.new_id())
        grant = await bench.granted(command)
        assert (grant.attempt, grant.output_tokens, grant.cost_nano_usd, grant.plan) == (1, 1_000, 3_000, PLAN)
        assert await bench.used() == [(1, 1, 0), (1_100, 1_100, 0), (3_000, 3_000, 0)]
        outcome = await bench.settle(telling(command))
        assert isinstance(outcome, Settled)
        assert outcome.overrun_nano_usd == 0
        assert await bench.used() == [(1, 0, 0), (150, 0, 0), (1_500, 0, 0)]

    async def test_usage_above_the_hold_is_counted_and_told_as_overrun(self, bench: Bench) -> None:
        """Nothing is free: what was used counts, and the caller learns by how much it passed the hold."""
        await bench.load(COST)
        command = asking(await bench.new_id())
        await bench.granted(command)
        outcome = await bench.settle(telling(command, cost=3_400))
        assert isinstance(outcome, Settled)
        assert outcome.overrun_nano_usd == 400
        assert await bench.used() == [(3_400, 0, 0)]

    async def test_a_full_limit_denies_and_tells_what_it_is(self, bench: Bench) -> None:
        """A denial names the limit, what is used, what was asked, and when it starts afresh."""
        await bench.load(CALLS, settled=3)
        outcome = await bench.reserve(asking(await bench.new_id()))
        assert isinstance(outcome, Denied)
        (denial,) = outcome.denials
        midnight = calendar_at(from_ms(await bench.time.now_ms()), "UTC").own_day.end_time
        assert (denial.limit_id, denial.unit, denial.window) == (CALLS.limit_id, Unit.CALLS, Window.DAY)
        assert (denial.amount, denial.used, denial.requested, denial.remaining) == (3, 3, 1, 0)
        assert (denial.reset_time, denial.scope) == (midnight, "account:owner-1")

    async def test_a_denial_is_not_remembered(self, bench: Bench) -> None:
        """A retry is decided afresh, and nothing of the denial is in the outbox."""
        await bench.load(limit(1, Unit.CALLS, 1))
        first, second = asking(await bench.new_id()), asking(await bench.new_id())
        await bench.granted(first)
        assert isinstance(await bench.reserve(second), Denied)
        await bench.release(first)
        assert isinstance(await bench.reserve(second), Granted)
        assert [record.kind for record in await bench.records()] == [
            EventKind.RESERVED,
            EventKind.RELEASED,
            EventKind.RESERVED,
        ]

    async def test_the_largest_output_that_fits_is_granted(self, bench: Bench) -> None:
        """The tightest hard limit decides, exactly."""
        await bench.load(limit(1, Unit.COST, 1_000 + 2 * 345), limit(2, Unit.TOKENS, 100 + 400))
        grant = await bench.granted(asking(await bench.new_id()))
        assert (grant.output_tokens, grant.cost_nano_usd) == (345, 1_690)

    @pytest.mark.parametrize("price", [1, 333_333, 999_999, 1_000_001, 7_777_777_777])
    async def test_what_is_granted_fits_and_one_more_token_would_not(self, bench: Bench, price: int) -> None:
        """The cost of the output rounds up, and the grant is the largest under the limit."""
        room = 123_456
        await bench.load(limit(1, Unit.COST, room))
        estimate = Estimate(1, 0, price, 1, 1_000_000_000)
        grant = await bench.granted(asking(await bench.new_id(), estimate=estimate))
        assert -(-grant.output_tokens * price // 1_000_000) == grant.cost_nano_usd <= room
        assert grant.output_tokens == 1_000_000_000 or -(-(grant.output_tokens + 1) * price // 1_000_000) > room

    async def test_a_call_without_output_is_granted_its_fixed_cost(self, bench: Bench) -> None:
        """Embeddings write nothing."""
        await bench.load(COST)
        grant = await bench.granted(asking(await bench.new_id(), estimate=Estimate(100, 700, 0, 0, 0)))
        assert (grant.output_tokens, grant.cost_nano_usd) == (0, 700)

    async def test_amounts_near_the_bound_are_exact(self, bench: Bench) -> None:
        """No amount passes through a form that keeps fewer digits."""
        await bench.load(limit(1, Unit.COST, AMOUNT_MAX), settled=AMOUNT_MAX - 2)
        one = Estimate(0, 1, 0, 0, 0)
        for _ in range(2):
            await bench.granted(asking(await bench.new_id(), estimate=one))
        assert await bench.used() == [(AMOUNT_MAX, 2, 0)]
        refused = await bench.reserve(asking(await bench.new_id(), estimate=one))
        assert isinstance(refused, Denied)
        assert (refused.denials[0].used, refused.denials[0].amount) == (AMOUNT_MAX, AMOUNT_MAX)

    async def test_a_soft_limit_counts_and_never_denies(self, bench: Bench) -> None:
        """It is there to be reported."""
        await bench.load(limit(1, Unit.CALLS, 1, is_hard=False))
        for _ in range(3):
            await bench.granted(asking(await bench.new_id()))
        assert await bench.used() == [(3, 3, 0)]

    async def test_limits_bind_by_scope_operation_and_payer(self, bench: Bench) -> None:
        """Each limit counts what it is about, and nothing else."""
        await bench.load(
            limit(1, Unit.CALLS, 9, scope=Scope(ScopeKind.AGENT, "agent-1")),
            limit(2, Unit.CALLS, 9, scope=Scope(ScopeKind.OWNER, "owner-2")),
            limit(3, Unit.CALLS, 9, operation=Operation.EMBEDDING_GENERATION),
            limit(4, Unit.CALLS, 9, payers=frozenset({Payer.PLATFORM})),
        )
        await bench.granted(asking(await bench.new_id()))
        await bench.granted(asking(await bench.new_id(), agent_id="agent-2", owner_id="owner-2"))
        await bench.granted(asking(await bench.new_id(), operation=Operation.EMBEDDING_GENERATION))
        await bench.granted(asking(await bench.new_id(), payer=Payer.PLATFORM, agent_id="agent-3"))
        reading = await bench.counters.read(ACCOUNT, bench.licence)
        assert not isinstance(reading, (NeedsAccount, NeedsCalendar, Fenced))
        assert sorted(each.counted for each in reading.counters) == [1, 1, 1, 2]

    async def test_the_same_call_again_is_the_same_hold(self, bench: Bench) -> None:
        """A reserve that is sent again by its holder holds once."""
        await bench.load(CALLS)
        command = asking(await bench.new_id())
        first, again = await bench.granted(command), await bench.granted(command)
        assert (first.attempt, first.expire_ms, first.cost_nano_usd) == (1, again.expire_ms, again.cost_nano_usd)
        assert await bench.used() == [(1, 1, 0)]

    async def test_an_operation_counts_once_whatever_its_attempts(self, bench: Bench) -> None:
        """Retries and chunks hold their tokens and cost each, and one call together."""
        await bench.load(CALLS, COST)
        request_id = await bench.new_id()
        for index in range(3):
            grant = await bench.granted(asking(request_id, call_index=index))
            assert grant.attempt == index + 1
        assert await bench.used() == [(1, 1, 0), (9_000, 9_000, 0)]

    async def test_after_a_release_the_next_attempt_counts_the_call(self, bench: Bench) -> None:
        """An operation whose counted attempt was given back is counted by the one that takes its place."""
        await bench.load(CALLS)
        request_id = await bench.new_id()
        await bench.granted(asking(request_id))
        await bench.release(asking(request_id))
        assert await bench.used() == [(0, 0, 0)]
        await bench.granted(asking(request_id, call_index=1))
        assert await bench.used() == [(1, 1, 0)]

    async def test_another_body_under_the_same_id_is_refused(self, bench: Bench) -> None:
        """A request id names one request."""
        await bench.load(CALLS)
        request_id = await bench.new_id()
        await bench.granted(asking(request_id))
        assert isinstance(await bench.reserve(asking(request_id, call_index=1, body="other")), Reused)

    async def test_another_router_waits_while_the_hold_lives_and_takes_over_after(self, bench: Bench) -> None:
        """One holder at a time; after suspense the next attempt is another's."""
        await bench.load(CALLS, COST)
        request_id = await bench.new_id()
        await bench.granted(asking(request_id))
        outcome = await bench.reserve(asking(request_id, holder=OTHER_ROUTER))
        assert isinstance(outcome, InProgress)
        assert 0 < outcome.retry_ms <= 120_000
        await bench.advance(timedelta(minutes=3))
        assert await bench.expire_due() == 1
        grant = await bench.granted(asking(request_id, holder=OTHER_ROUTER))
        assert grant.attempt == 2
        assert await bench.used() == [(1, 0, 1), (6_000, 3_000, 3_000)]

    async def test_a_final_settlement_closes_the_operation(self, bench: Bench) -> None:
        """Whoever asks again is told that it is closed; a billed failure leaves it open."""
        await bench.load(CALLS)
        request_id = await bench.new_id()
        await bench.granted(asking(request_id))
        await bench.settle(telling(asking(request_id), is_final=False))
        await bench.granted(asking(request_id, call_index=1))
        done = await bench.settle(telling(asking(request_id, call_index=1), attempt=2))
        assert isinstance(done, Settled)
        closed = await bench.reserve(asking(request_id, holder=OTHER_ROUTER))
        assert closed == Closed(done.sequence, 2)

    async def test_settling_again_changes_nothing_and_tells_the_first_figures(self, bench: Bench) -> None:
        """The first settlement stands."""
        await bench.load(COST)
        command = asking(await bench.new_id())
        await bench.granted(command)
        await bench.settle(telling(command))
        again = await bench.settle(telling(command, cost=9_999))
        assert isinstance(again, Repeat)
        assert (again.cost_nano_usd, again.tokens) == (1_500, 150)
        assert await bench.used() == [(1_500, 0, 0)]

    async def test_settling_a_lost_hold_counts_in_full(self, bench: Bench) -> None:
        """A settlement is self-contained: nothing is free because its hold was lost."""
        await bench.load(CALLS, TOKENS, COST)
        command = asking(await bench.new_id())
        outcome = await bench.settle(telling(command, reserve_ms=await bench.time.now_ms()))
        assert isinstance(outcome, Settled)
        assert await bench.used() == [(1, 0, 0), (150, 0, 0), (1_500, 0, 0)]
        late = await bench.reserve(command)
        assert isinstance(late, Closed)

    async def test_a_settled_call_that_is_not_final_cannot_be_reserved_again(self, bench: Bench) -> None:
        """A stalled duplicate of a call that is over is refused."""
        await bench.load(CALLS)
        command = asking(await bench.new_id())
        await bench.settle(telling(command, is_final=False))
        assert await bench.reserve(command) == CallClosed(CallState.SETTLED)

    async def test_releasing_an_unknown_call_leaves_a_tombstone(self, bench: Bench) -> None:
        """A reserve that stalled on its way cannot be granted after it was given up."""
        await bench.load(CALLS)
        command = asking(await bench.new_id())
        outcome = await bench.release(command)
        assert isinstance(outcome, Released)
        assert outcome.was_unknown
        assert await bench.reserve(command) == CallClosed(CallState.RELEASED)
        assert await bench.used() == [(0, 0, 0)]
        await bench.granted(msgspec.structs.replace(command, call=msgspec.structs.replace(command.call, call_index=1)))

    async def test_releasing_twice_gives_back_once(self, bench: Bench) -> None:
        """A repeated release is no release of somebody else's."""
        await bench.load(CALLS)
        other, command = asking(await bench.new_id()), asking(await bench.new_id())
        await bench.granted(other)
        await bench.granted(command)
        for _ in range(2):
            assert isinstance(await bench.release(command), Released)
        assert await bench.used() == [(1, 1, 0)]

    async def test_what_was_settled_cannot_be_released(self, bench: Bench) -> None:
        """Money that was spent stays counted."""
        await bench.load(COST)
        command = asking(await bench.new_id())
        await bench.granted(command)
        await bench.settle(telling(command))
        assert isinstance(await bench.release(command), AlreadySettled)
        assert await bench.used() == [(1_500, 0, 0)]

    async def test_usage_that_comes_after_a_release_is_counted(self, bench: Bench) -> None:
        """A provider that billed after all is paid after all."""
        await bench.load(COST)
        command = asking(await bench.new_id())
        grant = await bench.granted(command)
        await bench.release(command)
        assert isinstance(await bench.settle(telling(command, reserve_ms=grant.reserve_ms)), Settled)
        assert await bench.used() == [(1_500, 0, 0)]

    async def test_a_hold_expires_into_suspense_at_its_estimate_and_a_late_truth_replaces_it(
        self, bench: Bench
    ) -> None:
        """Nobody's word is no word: the estimate counts until the truth comes."""
        await bench.load(COST)
        command = asking(await bench.new_id())
        await bench.granted(command)
        assert await bench.expire_due() == 0
        await bench.advance(timedelta(minutes=3))
        assert await bench.expire_due() == 1
        assert await bench.used() == [(3_000, 0, 3_000)]
        assert isinstance(await bench.settle(telling(command)), Settled)
        assert await bench.used() == [(1_500, 0, 0)]
        assert [record.kind for record in await bench.records()] == [
            EventKind.RESERVED,
            EventKind.SUSPENDED,
            EventKind.SETTLED,
        ]

    async def test_a_router_can_put_its_hold_into_suspense(self, bench: Bench) -> None:
        """It is not known whether the provider bills: the estimate stands, once."""
        await bench.load(COST)
        command = asking(await bench.new_id())
        await bench.granted(command)
        assert isinstance(await bench.settle(telling(command, in_suspense=True, is_final=False)), Settled)
        assert isinstance(await bench.settle(telling(command, in_suspense=True, is_final=False)), Repeat)
        assert await bench.used() == [(3_000, 0, 3_000)]
        assert isinstance(await bench.release(command), Released)
        assert await bench.used() == [(0, 0, 0)]

    async def test_suspense_is_posted_when_its_day_ends_and_settling_it_later_writes_a_difference(
        self, bench: Bench
    ) -> None:
        """The ledger gets the estimate, and later what it was off by."""
        await bench.load(limit(1, Unit.COST, 100_000, window=Window.MONTH))
        command = asking(await bench.new_id())
        await bench.granted(command)
        await bench.settle(telling(command, in_suspense=True, is_final=False))
        await bench.advance(timedelta(hours=12))
        await bench.roll()
        assert await bench.expire_due() == 1
        assert isinstance(await bench.release(command), AlreadySettled)
        assert isinstance(await bench.settle(telling(command)), Settled)
        records = await bench.records()
        assert [record.kind for record in records] == [
            EventKind.RESERVED,
            EventKind.SUSPENDED,
            EventKind.POSTED,
            EventKind.SETTLED,
        ]
        was_posted = records[-1].numbers[-1]
        assert was_posted == 1

    async def test_extending_a_hold_keeps_it_from_expiring(self, bench: Bench) -> None:
        """A stream that goes on keeps its hold; a closed one has none to keep."""
        await bench.load(COST)
        command = asking(await bench.new_id())
        await bench.granted(command)
        outcome = await bench.extend(command, ttl=timedelta(minutes=10))
        assert isinstance(outcome, Extended)
        await bench.advance(timedelta(minutes=5))
        assert await bench.expire_due() == 0
        await bench.settle(telling(command))
        assert isinstance(await bench.extend(command, ttl=timedelta(minutes=10)), NotHeld)

    async def test_an_id_older_than_the_horizon_is_looked_up_elsewhere_first(self, bench: Bench) -> None:
        """What may have been forgotten is never taken for new."""
        await bench.load(CALLS, COST)
        request_id = await bench.new_id()
        command = asking(request_id)
        await bench.advance(timedelta(hours=4))
        assert isinstance(await bench.reserve(command), NeedsHistory)
        assert isinstance(await bench.settle(telling(command)), NeedsHistory)
        assert await bench.admission.lookup(_lookup(request_id), bench.licence) == NeedsHistory()
        billed = PriorAttempt(1, ROUTER, 0, CallState.SETTLED, 1_500, 150)
        prior = PriorOperation(request_id, ACCOUNT, command.facts.body_hash, is_final=False, attempts=(billed,))
        grant = await bench.reserve(asking(request_id, call_index=1), history=History(prior))
        assert isinstance(grant, Granted)
        assert grant.attempt == 2
        assert await bench.used() == [(0, 0, 0), (3_000, 3_000, 0)]

    async def test_an_old_settlement_that_postgres_has_is_a_repeat(self, bench: Bench) -> None:
        """It is counted once, however late it is sent again."""
        await bench.load(COST)
        request_id = await bench.new_id()
        command = asking(request_id)
        await bench.advance(timedelta(hours=4))
        billed = PriorAttempt(1, ROUTER, 0, CallState.SETTLED, 1_500, 150)
        prior = PriorOperation(request_id, ACCOUNT, command.facts.body_hash, is_final=True, attempts=(billed,))
        outcome = await bench.settle(telling(command), history=History(prior))
        assert isinstance(outcome, Repeat)
        assert await bench.used() == [(0, 0, 0)]

    async def test_records_are_forgotten_only_after_they_are_durable(self, bench: Bench) -> None:
        """Pruning goes by what Postgres has."""
        await bench.load(CALLS)
        command = asking(await bench.new_id())
        await bench.granted(command)
        await bench.settle(telling(command))
        written_ms = await bench.time.now_ms()
        await bench.advance(timedelta(hours=4))
        everything = range(256)
        durable = dict.fromkeys(everything, written_ms)
        assert await bench.expiry.prune(bench.licence, everything, before_ms=durable) == 0
        durable = dict.fromkeys(everything, await bench.time.now_ms())
        assert await bench.expiry.prune(bench.licence, everything, before_ms=durable) == 1
        assert isinstance(await bench.reserve(command), NeedsHistory)

    async def test_attempts_are_bounded(self, bench: Bench) -> None:
        """An operation that calls without end is a loop."""
        await bench.load(CALLS)
        request_id = await bench.new_id()
        cheap = Estimate(0, 0, 0, 0, 0)
        for index in range(ATTEMPTS_MAX):
            await bench.granted(asking(request_id, call_index=index, estimate=cheap))
        outcome = await bench.reserve(asking(request_id, call_index=ATTEMPTS_MAX, estimate=cheap))
        assert isinstance(outcome, TooManyAttempts)

    async def test_a_look_up_follows_an_operation(self, bench: Bench) -> None:
        """Unknown, held, billed, held again, final."""
        await bench.load(CALLS)
        request_id = await bench.new_id()
        assert await bench.admission.lookup(_lookup(request_id), bench.licence) == Found(OperationState.UNKNOWN)
        grant = await bench.granted(asking(request_id))
        held = await bench.admission.lookup(_lookup(request_id), bench.licence)
        assert held == Found(OperationState.HELD, holder=ROUTER, expire_ms=grant.expire_ms)
        await bench.settle(telling(asking(request_id), is_final=False))
        assert await bench.admission.lookup(_lookup(request_id), bench.licence) == Found(OperationState.BILLED)
        await bench.granted(asking(request_id, call_index=1))
        await bench.release(asking(request_id, call_index=1))
        assert await bench.admission.lookup(_lookup(request_id), bench.licence) == Found(OperationState.RELEASED)
        await bench.granted(asking(request_id, call_index=2))
        await bench.settle(telling(asking(request_id, call_index=2), attempt=3))
        final = await bench.admission.lookup(_lookup(request_id), bench.licence)
        assert isinstance(final, Found)
        assert (final.state, final.attempts) == (OperationState.FINAL, 3)
        reused = LookupCommand(request_id=request_id, account=ACCOUNT, body_hash=b"x" * 16)
        assert isinstance(await bench.admission.lookup(reused, bench.licence), Reused)

    async def test_the_outbox_tells_everything_in_order_and_forgets_what_was_trimmed(self, bench: Bench) -> None:
        """Sequences count up by one, and carry the facts of the call."""
        await bench.load(COST)
        command = asking(await bench.new_id())
        await bench.granted(command)
        await bench.settle(telling(command))
        records = await bench.records()
        assert [record.sequence for record in records] == [1, 2]
        assert records[1].facts == telling(command).facts
        assert records[1].rule == "owner_key"
        watermark = Watermark(records[0].partition, 1, 1)
        await bench.outbox.trim([watermark])
        assert [record.sequence for record in await bench.records()] == [2]
        assert await bench.outbox.backlog([watermark]) == {watermark.partition: 1}


class TestMemory(AdmissionStoreContract):
    """The store that tests use."""

    @pytest.fixture
    async def bench(self) -> AsyncIterator[Bench]:
        """Open the memory adapter."""
        async with memory_bench() as opened:
            yield opened


class TestRedis(AdmissionStoreContract):
    """The store that runs."""

    @pytest.fixture
    async def bench(self, redis_server: str) -> AsyncIterator[Bench]:
        """Open the Redis adapter."""
        async with redis_bench(redis_server) as opened:
            yield opened


def _lookup(request_id: str) -> LookupCommand:
    return LookupCommand(request_id=request_id, account=ACCOUNT, body_hash=b"")
