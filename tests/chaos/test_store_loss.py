"""Redis and all it held is lost; the counters are rebuilt from the ledger, and caps hold as if nothing had happened."""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from testkit.simulator.client import SimulatorControl
from testkit.stack.customer import Customer, Suite
from testkit.stack.load import attempt
from testkit.stack.stack import Stack, StackOptions
from testkit.waiting import eventually

pytestmark = pytest.mark.chaos

_CAP = 20
_BEFORE = 12
_AFTER = 16
_TRIES_MAX = 300
# A rebuild waits for the licence of every replica that it cannot reach.
_LICENCE = {"BYOK_METERING_LICENCE__LIFE": "5", "BYOK_METERING_LICENCE__RENEW": "1"}


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """Run a stack for this test to break."""
    async with Stack(tmp_path, options=StackOptions(is_durable=False, is_kept=False, environment=_LICENCE)) as running:
        yield running


@pytest.mark.timeout(240)
async def test_a_cap_holds_over_the_loss_of_redis(stack: Stack) -> None:
    """What was used before counts after; callers are held meanwhile, and never let past the cap."""
    async with Suite(stack) as suite, SimulatorControl(stack.simulator) as control:
        customer = Customer(suite)
        await customer.set_up("openai")
        limit_id = (await customer.cap(_CAP)).limit.limit_id
        before = [await attempt(customer, tries_max=_TRIES_MAX, timeout_seconds=20) for _ in range(_BEFORE)]
        assert all(outcome.response is not None for outcome in before)
        wanted = {outcome.request_id for outcome in before}
        await eventually(customer.entries, lambda seen: {entry.request_id for entry in seen} >= wanted)

        stack.redis.kill9()
        shutil.rmtree(stack.redis.data_dir)
        stack.redis.start()
        await control.clear_ledger()
        after = await asyncio.gather(
            *(attempt(customer, tries_max=_TRIES_MAX, timeout_seconds=20) for _ in range(_AFTER))
        )

        answered = sum(outcome.response is not None for outcome in after)
        reasons = Counter(outcome.error.reason for outcome in after if outcome.error is not None)
        assert answered == _CAP - _BEFORE, reasons
        assert reasons == {"CAP_REACHED": _AFTER - answered}
        assert sum(entry.is_billed for entry in await control.ledger()) == answered
        usage = await eventually(lambda: customer.limit_usage(limit_id), lambda seen: seen.settled_amount == _CAP)
        assert (usage.held_amount, usage.suspense_amount) == (0, 0)
