"""Calls that the platform pays: its policy decides, its budget is held first, and both legs go the same way."""

from datetime import timedelta

import pytest

from metering.domain.accounts import PLATFORM
from metering.domain.enums import Operation, Payer, PlatformCause, Unit
from metering.domain.errors import CapReachedError, PlatformNotPayingError
from metering.usecases.reserve_batch import Grant, ReserveRequest
from metering.usecases.settle_batch import Settlement
from services.metering.tests.rig import Rig, asked, owner, released, settled

PLATFORM_ONLY = frozenset({Payer.PLATFORM})


@pytest.fixture
async def paying(rig: Rig) -> Rig:
    """Return a replica whose platform pays for embeddings that have no key."""
    await rig.fetch("UPDATE policy SET pays_embedding_fallback = true")
    await rig.register("owner-1", "agent-1")
    return rig


def fallback(rig: Rig, *, request_id: str = "", ttl: timedelta = timedelta(minutes=2)) -> ReserveRequest:
    """Return an embedding that the platform is asked to pay."""
    return asked(
        rig,
        owner(),
        "agent-1",
        operation=Operation.EMBEDDING_GENERATION,
        payer=Payer.PLATFORM,
        cause=PlatformCause.NO_KEY_FOR_OPERATION,
        request_id=request_id,
        ttl=ttl,
    )


async def test_without_permission_the_platform_does_not_pay(rig: Rig) -> None:
    """The denial names the cause and the rule."""
    await rig.register("owner-1", "agent-1")
    refused = await rig.reserve(fallback(rig))
    assert isinstance(refused, PlatformNotPayingError)
    assert refused.facts == {"cause": "NO_KEY_FOR_OPERATION", "rule": "phase_required"}
    assert await rig.flush() == 0


async def test_both_legs_are_held_and_settled_and_the_owner_is_not_charged(paying: Rig) -> None:
    """The platform's budget has the cost, and the owner's daily cap does not."""
    await paying.limit(PLATFORM, Unit.COST, 100_000_000, payers=PLATFORM_ONLY)
    request = fallback(paying)
    grant = await paying.granted(request)
    assert grant.payer_rule == "platform_embedding_fallback"
    assert (await paying.counters(PLATFORM))["COST/DAY/"] == (0, 5_400_000, 0)
    assert isinstance(await paying.settle(settled(request, grant)), Settlement)
    assert (await paying.counters(PLATFORM))["COST/DAY/"] == (1_000_000, 0, 0)
    assert (await paying.counters(request.command.account))["COST/DAY/"] == (0, 0, 0)
    await paying.flush()
    entries = await paying.fetch("SELECT account, leg, for_account, cost_nano_usd FROM ledger_entries ORDER BY leg")
    assert [tuple(entry) for entry in entries] == [("o:owner-1", 0, "", 1_000_000), ("p:", 1, "o:owner-1", 1_000_000)]


async def test_a_spent_budget_denies_and_a_denied_own_leg_gives_the_budget_back(paying: Rig) -> None:
    """Neither leg stays alone, and the same call can be asked for again."""
    await paying.limit(PLATFORM, Unit.CALLS, 1, payers=PLATFORM_ONLY)
    trial = await paying.limit(fallback(paying).command.account, Unit.CALLS, 0, payers=PLATFORM_ONLY)
    request = fallback(paying)
    denied = await paying.reserve(request)
    assert isinstance(denied, CapReachedError)
    assert denied.facts["limit_id"] == trial.limit_id
    assert (await paying.counters(PLATFORM))["CALLS/DAY/"] == (0, 0, 0)
    await paying.limit(request.command.account, Unit.CALLS, 5, payers=PLATFORM_ONLY)
    again = await paying.reserve(request)
    assert isinstance(again, Grant)
    assert again.hold.attempt == 1
    over_budget = await paying.reserve(fallback(paying))
    assert isinstance(over_budget, CapReachedError)
    assert str(over_budget.facts["scope"]).startswith("account:")
    assert (await paying.counters(request.command.account))["CALLS/DAY/"] == (0, 1, 0)


async def test_a_release_gives_both_legs_back(paying: Rig) -> None:
    """The platform's budget follows the call."""
    await paying.limit(PLATFORM, Unit.COST, 100_000_000, payers=PLATFORM_ONLY)
    request = fallback(paying)
    await paying.granted(request)
    await paying.admission.release([released(request)])
    assert (await paying.counters(PLATFORM))["COST/DAY/"] == (0, 0, 0)


async def test_expiry_puts_both_legs_into_suspense(paying: Rig) -> None:
    """The platform's leg is not due yet, and goes with the call's own."""
    await paying.limit(PLATFORM, Unit.COST, 100_000_000, payers=PLATFORM_ONLY)
    await paying.granted(fallback(paying, ttl=timedelta(milliseconds=1)))
    await paying.flush()
    assert await paying.replica.expirer.round() == 1
    assert (await paying.counters(PLATFORM))["COST/DAY/"] == (0, 0, 5_400_000)


async def test_the_platforms_own_work_has_one_leg(rig: Rig) -> None:
    """Safety escalation stands in the platform's account alone."""
    await rig.fetch("UPDATE policy SET pays_safety_escalation = true")
    await rig.limit(PLATFORM, Unit.COST, 100_000_000, payers=PLATFORM_ONLY)
    request = asked(
        rig,
        PLATFORM,
        "",
        owner_id="",
        operation=Operation.SAFETY_ESCALATION,
        payer=Payer.PLATFORM,
        cause=PlatformCause.OPERATION_IS_PLATFORMS,
    )
    grant = await rig.granted(request)
    await rig.settle(settled(request, grant))
    await rig.flush()
    assert await rig.ledger_cost() == 1_000_000
    assert (await rig.counters(PLATFORM))["COST/DAY/"] == (1_000_000, 0, 0)
