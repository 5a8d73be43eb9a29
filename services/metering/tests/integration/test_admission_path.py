"""Reserve, settle, flush, read: one replica on real stores."""

import asyncio

from metering.domain.enums import Operation, ScopeKind, Unit, Window
from metering.domain.errors import AlreadySettledError, CapReachedError
from metering.domain.limits import Scope
from metering.domain.principals import Principal
from metering.domain.reservations import Released
from metering.domain.usage import Dimension, UsageQuery
from metering.usecases.final_outcomes import FinalOutcome
from metering.usecases.reserve_batch import Grant
from metering.usecases.settle_batch import Settlement
from services.metering.tests.rig import Rig, asked, released, settled


async def test_a_settled_call_is_in_the_ledger_and_in_the_sums(rig: Rig) -> None:
    """What was reserved and settled is summed, with nothing held."""
    account = await rig.register("owner-1", "agent-1")
    request = asked(rig, account, "agent-1")
    grant = await rig.granted(request)
    assert grant.hold.output_tokens == 1_000
    assert grant.hold.cost_nano_usd == 400_000 + 5_000_000
    done = await rig.settle(settled(request, grant))
    assert isinstance(done, Settlement)
    await rig.flush()
    summary, zone = await rig.usage.summary(
        UsageQuery(account=account, start=None, end=None, group_by=(Dimension.OPERATION,)),
        Principal(owner_id="owner-1"),
    )
    assert (summary.settled_cost_nano_usd, summary.held_cost_nano_usd, zone) == (1_000_000, 0, "UTC")
    assert [(row.operation, row.calls, row.input_tokens, row.output_tokens) for row in summary.rows] == [
        (Operation.GUARDRAIL_EVALUATION, 1, 480, 120)
    ]
    entries = await rig.usage.entries(
        UsageQuery(account=account, start=None, end=None), Principal(owner_id="owner-1"), after="", count=10
    )
    assert [(str(entry.reservation_id), entry.facts.payer_rule) for entry in entries] == [
        (grant.reservation_id, "owner_key")
    ]


async def test_fifty_callers_on_a_cap_of_twenty_get_exactly_twenty(rig: Rig) -> None:
    """A cap is exact, whatever comes at once."""
    account = await rig.register("owner-1", "agent-1")
    await rig.limit(account, Unit.CALLS, 20, scope=Scope(ScopeKind.AGENT, "agent-1"))
    results = await asyncio.gather(*(rig.reserve(asked(rig, account, "agent-1")) for _ in range(50)))
    assert sum(isinstance(result, Grant) for result in results) == 20
    denied = [result for result in results if isinstance(result, CapReachedError)]
    assert len(denied) == 30
    assert denied[0].facts["remaining"] == 0
    assert denied[0].facts["limit"] == 20
    assert denied[0].retry_after is None
    assert denied[0].quota[0].quota_value == 20


async def test_the_largest_output_that_fits_is_granted(rig: Rig) -> None:
    """A cost cap shortens the output instead of refusing, down to the least that makes sense."""
    account = await rig.register("owner-1", "agent-1")
    await rig.limit(account, Unit.COST, 400_000 + 5_000 * 333)
    first = asked(rig, account, "agent-1")
    grant = await rig.granted(first)
    assert grant.hold.output_tokens == 333
    refused = await rig.reserve(asked(rig, account, "agent-1"))
    assert isinstance(refused, CapReachedError)
    assert refused.facts["unit"] == "COST"


async def test_settling_again_counts_once_and_other_figures_are_refused(rig: Rig) -> None:
    """Settling is idempotent for life; the first figures stand."""
    account = await rig.register("owner-1", "agent-1")
    request = asked(rig, account, "agent-1")
    grant = await rig.granted(request)
    await rig.settle(settled(request, grant))
    again = await rig.settle(settled(request, grant))
    assert isinstance(again, Settlement)
    assert again.is_repeat
    other = await rig.settle(settled(request, grant, cost=5))
    assert isinstance(other, AlreadySettledError)
    await rig.flush()
    assert await rig.ledger_cost() == 1_000_000


async def test_a_final_outcome_is_given_again(rig: Rig) -> None:
    """A closed request id answers with what was paid and the sealed answer."""
    account = await rig.register("owner-1", "agent-1")
    request = asked(rig, account, "agent-1")
    grant = await rig.granted(request)
    await rig.settle(settled(request, grant, sealed_answer=b"sealed"))
    flushing = asyncio.create_task(rig.flush())
    again = await rig.reserve(asked(rig, account, "agent-1", request_id=request.command.call.request_id))
    await flushing
    assert isinstance(again, FinalOutcome)
    assert again.sealed_answer == b"sealed"
    assert [entry.facts.cost_nano_usd for entry in again.entries] == [1_000_000]


async def test_a_release_gives_everything_back(rig: Rig) -> None:
    """After a release the counters are where they were, and the call cannot be reserved again."""
    account = await rig.register("owner-1", "agent-1")
    request = asked(rig, account, "agent-1")
    await rig.granted(request)
    outcome = (await rig.admission.release([released(request)]))[0]
    assert isinstance(outcome, Released)
    assert not outcome.was_unknown
    assert set((await rig.counters(account)).values()) == {(0, 0, 0)}
    await rig.flush()
    assert await rig.fetch("SELECT * FROM holds") == []


async def test_lowering_a_limit_below_use_stops_admission_and_raising_it_opens_again(rig: Rig) -> None:
    """A changed amount is in force when SetLimit answers, and use is kept."""
    account = await rig.register("owner-1", "agent-1")
    flusher = asyncio.create_task(rig.replica.flusher.run(stop := asyncio.Event()))
    await rig.limit(account, Unit.CALLS, 5, window=Window.MONTH)
    for _ in range(3):
        request = asked(rig, account, "agent-1")
        await rig.settle(settled(request, await rig.granted(request)))
    held = asked(rig, account, "agent-1")
    await rig.granted(held)
    await rig.limit(account, Unit.CALLS, 2, window=Window.MONTH)
    assert (await rig.counters(account))["CALLS/MONTH/"] == (3, 1, 0)
    assert isinstance(await rig.reserve(asked(rig, account, "agent-1")), CapReachedError)
    await rig.limit(account, Unit.CALLS, 5, window=Window.MONTH)
    assert isinstance(await rig.reserve(asked(rig, account, "agent-1")), Grant)
    stop.set()
    await flusher
