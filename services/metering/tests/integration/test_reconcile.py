"""Counters are compared with the ledger: no drift where nothing is wrong, and any that there is."""

import redis.asyncio

from metering.adapters.redis import keys
from metering.domain.enums import Unit, Window
from metering.domain.principals import Principal
from services.metering.tests.rig import Rig, asked, released, settled


async def make_use(rig: Rig) -> None:
    """Settle, hold, suspend and release under limits of every window."""
    account = await rig.register("owner-1", "agent-1")
    for window in Window:
        await rig.limit(account, Unit.TOKENS, 2**40, window=window)
    for number in range(8):
        request = asked(rig, account, "agent-1")
        grant = await rig.granted(request)
        if number % 4 == 0:
            await rig.settle(settled(request, grant, cost=7_000_000))
        elif number % 4 == 1:
            await rig.settle(settled(request, grant, in_suspense=True, is_final=False))
        elif number % 4 == 2:
            await rig.admission.release([released(request)])


async def test_counters_that_are_right_do_not_drift(rig: Rig) -> None:
    """Settled, held and in suspense, in every window."""
    await make_use(rig)
    reconciler = rig.replica.reconciler
    assert await reconciler.round() == 0
    assert reconciler.compared == 0, "nothing is in the ledger yet"
    await rig.flush()
    assert await reconciler.round() == 0
    assert reconciler.compared == 1


async def test_a_counter_that_was_touched_by_somebody_else_is_found(rig: Rig) -> None:
    """Whoever edits Redis by hand is noticed."""
    await make_use(rig)
    await rig.flush()
    account = await rig.register("owner-1", "agent-1")
    async with redis.asyncio.from_url(rig.redis_url) as client:
        name = keys.account_hash_key(account, 1)
        limit = (await rig.replica.stores.limits.list_limits(account))[0]
        reading = (await rig.limits.list_limits(account, Principal(operator_id="root"), agent_id="")).counters[0]
        assert reading.limit.limit_id == limit.limit_id
        await client.hincrby(name, f"c{limit.slot}:{reading.span.start}", -5)
    assert await rig.replica.reconciler.round() == 1
