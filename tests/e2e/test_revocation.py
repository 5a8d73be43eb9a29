"""After a revocation has returned no call starts on the key, whichever replica held a lease of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from testkit.simulator.client import SimulatorControl
from testkit.simulator.ledger import key_fingerprint
from testkit.stack.customer import Customer, Suite
from testkit.stack.load import Load
from testkit.stack.stack import Stack, StackOptions

# A request that was on its way when the revocation returned may still be read by the provider.
_ON_ITS_WAY_SECONDS = 0.25
_WATCHED_SECONDS = 2.0


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """Run two replicas of whoever gives leases, and of whoever holds them."""
    async with Stack(
        tmp_path, options=StackOptions(keyvaults=2, routers=2, is_durable=False, is_kept=False)
    ) as running:
        yield running


async def test_no_call_starts_after_a_revocation_has_returned(stack: Stack) -> None:
    """Under load on both Routers, the provider sees no call on the key any more, and callers are told why."""
    async with Suite(stack) as suite, SimulatorControl(stack.simulator) as control:
        customer = Customer(suite)
        key = await customer.set_up("openai")
        load = Load([customer], workers=8)
        load.start()
        await load.wait_for(40)
        await customer.revoke(key.key_id)
        await asyncio.sleep(_ON_ITS_WAY_SECONDS)
        last = (await control.ledger())[-1].call_id
        refused_before = len(load.outcomes) - load.answered
        await asyncio.sleep(_WATCHED_SECONDS)
        outcomes = await load.stop()
        fingerprint = key_fingerprint(customer.secret("openai"))
        late = [entry for entry in await control.ledger(after=last) if entry.key_fingerprint == fingerprint]
        refusals = {outcome.error.reason for outcome in outcomes if outcome.error is not None}
    assert late == []
    assert len(outcomes) - load.answered > refused_before
    assert refusals <= {"BYOK_KEY_REQUIRED", "PROVIDER_KEY_REVOKED", "SUITE_UNAVAILABLE"}
