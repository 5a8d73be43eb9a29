"""A key that its provider rejects for a while goes out of use and comes back, without its owner doing anything."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import asyncpg

from byok.keyvault.v1 import key_service_pb2, provider_key_pb2
from testkit.simulator.client import SimulatorControl
from testkit.simulator.ledger import key_fingerprint
from testkit.stack.customer import Customer, Suite
from testkit.stack.refusals import refusal
from testkit.stack.stack import Stack, StackOptions
from testkit.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

_ENVIRONMENT = {
    "BYOK_KEYVAULT_HEALTH__INTERVAL": "0.2",
    "BYOK_ROUTER_DUE_KEYS__FIRST_PAUSE": "1",
}


async def _let_it_be_due(dsn: str, key_id: str, state: int) -> None:
    """Wait until KeyVault has planned a key in this state, and let the time pass after which it is tested."""
    connection = await asyncpg.connect(dsn)
    try:

        async def moved() -> int:
            tag = await connection.execute(
                "UPDATE agent_ai_key_checks SET next_check_time = now() WHERE provider_key_id = $1 AND state = $2",
                key_id,
                state,
            )
            return int(tag.split()[-1])

        await eventually(moved, lambda rows: rows == 1)
    finally:
        await connection.close()


async def _state(suite: Suite, customer: Customer, key_id: str) -> int:
    request = key_service_pb2.GetKeyRequest(acting_for=customer.principal, key_id=key_id)
    return (await suite.keys.GetKey(request)).key.state


async def test_a_key_finds_back_without_its_owner(tmp_path: Path) -> None:
    """One refused call makes it fail, a test call takes it out of use, and another one brings it back."""
    options = StackOptions(is_durable=False, is_kept=False, environment=_ENVIRONMENT)
    async with (
        Stack(tmp_path / "stack", options=options) as stack,
        Suite(stack) as suite,
        SimulatorControl(stack.simulator) as control,
    ):
        customer = Customer(suite)
        key = await customer.set_up("openai")
        state = partial(_state, suite, customer, key.key_id)
        fingerprint = key_fingerprint(customer.secret("openai"))
        await control.add_fault("bad_key", key_fingerprint=fingerprint, times=None)
        await refusal(customer.evaluate())
        for before, after in (
            (provider_key_pb2.KEY_STATE_FAILING, provider_key_pb2.KEY_STATE_INVALID),
            (provider_key_pb2.KEY_STATE_INVALID, provider_key_pb2.KEY_STATE_ACTIVE),
        ):
            await eventually(state, lambda found, before=before: found == before)  # type: ignore[misc]  # defaults bind
            if after == provider_key_pb2.KEY_STATE_ACTIVE:
                await control.clear_faults()
            await _let_it_be_due(stack.keyvault_dsn, key.key_id, before)
            await eventually(state, lambda found, after=after: found == after, timeout_seconds=40)  # type: ignore[misc]  # defaults bind
        await customer.evaluate()
