"""A cap is hard: of many callers at once exactly as many get through as it allows, whatever happens to Metering."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from testkit.simulator.client import SimulatorControl
from testkit.stack.customer import Customer, Suite
from testkit.stack.load import Outcome, attempt
from testkit.stack.stack import Stack, StackOptions
from testkit.waiting import eventually

pytestmark = pytest.mark.chaos

_CALLERS = 50
_CAP = 20
_TRIES_MAX = 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Run a stack with two Metering replicas, for these tests to break and mend."""
    options = StackOptions(meterings=2, is_durable=False, is_kept=False)
    async with Stack(tmp_path_factory.mktemp("stack"), options=options) as running:
        yield running


async def _prepare(suite: Suite, control: SimulatorControl) -> Customer:
    customer = Customer(suite)
    await customer.set_up("openai")
    await customer.cap(_CAP)
    # Long enough for all callers to be on their way at once.
    await control.set_latency(0.3, jitter_seconds=0.1)
    await control.clear_ledger()
    return customer


async def _check(customer: Customer, control: SimulatorControl, outcomes: list[Outcome]) -> None:
    """Exactly the cap got through, everyone else met the cap, and the provider saw no call more."""
    answered = [outcome for outcome in outcomes if outcome.response is not None]
    reasons = Counter(outcome.error.reason for outcome in outcomes if outcome.error is not None)
    assert len(answered) == _CAP, reasons
    assert reasons == {"CAP_REACHED": _CALLERS - _CAP}
    billed = [entry for entry in await control.ledger() if entry.is_billed]
    assert len(billed) == _CAP
    wanted = {outcome.request_id for outcome in answered}
    await eventually(customer.entries, lambda entries: {entry.request_id for entry in entries} >= wanted)


async def test_exactly_the_cap_gets_through_one_metering(
    suite_stack: Stack, suite: Suite, simulator_control: SimulatorControl
) -> None:
    """50 callers at once on a cap of 20: 20 answers, 30 typed refusals, 20 provider calls."""
    assert len([each for each in suite_stack.services if each.service == "metering"]) == 1
    customer = await _prepare(suite, simulator_control)
    outcomes = await asyncio.gather(*(attempt(customer) for _ in range(_CALLERS)))
    await _check(customer, simulator_control, outcomes)


async def test_exactly_the_cap_gets_through_two_meterings(stack: Stack) -> None:
    """Two replicas share the counters, so they share the cap."""
    async with Suite(stack) as suite, SimulatorControl(stack.simulator) as control:
        customer = await _prepare(suite, control)
        outcomes = await asyncio.gather(*(attempt(customer) for _ in range(_CALLERS)))
        await _check(customer, control, outcomes)


async def test_exactly_the_cap_gets_through_while_a_metering_is_killed(stack: Stack) -> None:
    """A replica dies half-way; callers that met its end try again under the same id, and the cap still holds."""
    async with Suite(stack) as suite, SimulatorControl(stack.simulator) as control:
        customer = await _prepare(suite, control)
        tasks = [
            asyncio.create_task(attempt(customer, tries_max=_TRIES_MAX, timeout_seconds=20)) for _ in range(_CALLERS)
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        stack.kill9("metering", 0)
        outcomes = await asyncio.gather(*tasks)
        await stack.start_again("metering", 0)
        await _check(customer, control, outcomes)
