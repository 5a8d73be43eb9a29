"""KeyVault's whole database is put back to an old copy: in it a revoked key is active, and no call is made on it.

The copy authenticates, row by row and as a log: only somebody who remembers more than KeyVault's database can tell.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import grpc
import pytest

from byok.keyvault.v1 import key_service_pb2, provider_key_pb2
from byok.metering.v1 import account_service_pb2
from byok.router.v1 import operation_result_pb2, operation_service_pb2
from byok_client.client import ByokClient, Targets
from byok_client.errors import ByokError
from testkit.postgres import create_database, drop_database
from testkit.settings import TestkitSettings
from testkit.simulator.client import SimulatorControl
from testkit.stack.customer import Customer, Suite
from testkit.stack.load import Outcome, attempt
from testkit.stack.refusals import refusal
from testkit.stack.stack import Stack, StackOptions
from testkit.waiting import eventually

pytestmark = pytest.mark.chaos

# What Metering promises from the moment at which the restored log can be read, and room for a loaded machine.
_FOUND_WITHIN_SECONDS = 5.0
_TRIES_MAX = 200
# The second, where the revocation overtakes a call that has its lease.
_REVOKED = {"BYOK_KEY_REQUIRED", "PROVIDER_KEY_REVOKED"}
_ROUNDS = TestkitSettings().chaos_rounds
_Answer = TypeVar("_Answer")


class Vault:
    """KeyVault's database, of which a copy is taken and put back, as an operator would at night."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._name = urlsplit(stack.keyvault_dsn).path.lstrip("/")
        self._copy = f"{self._name}_copy"
        # Any database of the server but the one that is copied.
        self._away = stack.metering_dsn

    async def take_copy(self) -> None:
        """Copy the database; a template may have no connection, so KeyVault is ended for it."""
        self._stack.kill9("keyvault")
        await create_database(self._away, self._copy, template=self._name)
        await self._stack.start_again("keyvault")

    async def put_back(self) -> None:
        """Put the copy in the database's place."""
        self._stack.kill9("keyvault")
        await drop_database(self._away, self._name)
        await create_database(self._away, self._name, template=self._copy)
        await drop_database(self._away, self._copy)
        await self._stack.start_again("keyvault")
        # A Router remembers for some minutes what it was told of a revocation; one that was started since does not.
        await self._stack.restart("router")


@asynccontextmanager
async def running(directory: Path, *, meterings: int) -> AsyncIterator[tuple[Suite, ByokClient]]:
    """Run a stack, and an operator's client to its Meterings."""
    options = StackOptions(meterings=meterings, is_durable=False, is_kept=False)
    async with Stack(directory, options=options) as stack, Suite(stack) as suite:
        targets = Targets(metering=stack.target("metering"), server_name="localhost")
        async with ByokClient(targets, stack.client_tls("operator")) as operator:
            yield suite, operator


async def patiently(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Make a call again while the channel has not found its way back to a service that was restarted."""

    async def once() -> _Answer | None:
        try:
            return await call()
        except (grpc.aio.AioRpcError, ByokError) as error:
            code = error.code if isinstance(error, ByokError) else error.code()
            if code is not grpc.StatusCode.UNAVAILABLE:
                raise
            return None

    answer = await eventually(once, lambda found: found is not None)
    assert answer is not None
    return answer


async def outcome(customer: Customer) -> Outcome:
    """Have content judged, asking again while a service that was restarted is not found again."""
    return await attempt(customer, tries_max=_TRIES_MAX, timeout_seconds=20)


def reason_of(refused: Outcome) -> str:
    """Return why a call was refused; nothing if it was not."""
    return refused.error.reason if refused.error else ""


async def witness(operator: ByokClient) -> account_service_pb2.CustodyWitness:
    """Return what was witnessed."""
    return (await patiently(operator.custody.witness)).witness


async def revoke_and_restore(suite: Suite, operator: ByokClient) -> tuple[Customer, str]:
    """Take a copy, revoke a key that works, put the copy back; return whose key it is, and its id."""
    vault = Vault(suite.stack)
    customer = Customer(suite)
    key = await patiently(lambda: customer.set_up("openai"))
    assert (await outcome(customer)).response is not None
    await vault.take_copy()
    assert (await outcome(customer)).response is not None
    revoked = await patiently(lambda: customer.revoke(key.key_id))
    assert reason_of(await outcome(customer)) in _REVOKED
    # What was not witnessed yet is outside the promise.
    await eventually(lambda: witness(operator), lambda seen: seen.witnessed_size >= revoked.authority_index)
    await vault.put_back()
    return customer, key.key_id


async def state_of(suite: Suite, customer: Customer, key_id: str) -> "provider_key_pb2.KeyState.ValueType":
    """Return a key's state as KeyVault has it now."""
    request = key_service_pb2.GetKeyRequest(key_id=key_id, acting_for=customer.principal)
    return (await suite.keys.GetKey(request)).key.state


@pytest.mark.timeout(120 + 60 * _ROUNDS)
async def test_a_revoked_key_of_a_restored_vault_is_not_spent_until_an_operator_accepts(tmp_path: Path) -> None:
    """Callers hold with a typed reason, the provider sees no call; after the acceptance work goes on."""
    async with running(tmp_path, meterings=2) as (suite, operator):
        for _ in range(_ROUNDS):
            await _roll_back_and_accept(suite, operator)


async def _roll_back_and_accept(suite: Suite, operator: ByokClient) -> None:
    customer, key_id = await revoke_and_restore(suite, operator)
    started = time.monotonic()  # noqa: TID251 (how long real processes take)
    found = await eventually(
        lambda: witness(operator), lambda seen: seen.state == account_service_pb2.CUSTODY_STATE_ROLLED_BACK
    )
    took = time.monotonic() - started  # noqa: TID251 (as above)
    assert took < _FOUND_WITHIN_SECONDS, found.description
    # KeyVault itself has forgotten the revocation.
    assert await patiently(lambda: state_of(suite, customer, key_id)) == provider_key_pb2.KEY_STATE_ACTIVE
    async with SimulatorControl(suite.stack.simulator) as control:
        last = (await control.ledger())[-1].call_id
        for _ in range(20):
            refused = (await outcome(customer)).error
            assert refused is not None
            assert (refused.code, refused.reason) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                "CUSTODY_LOG_ROLLED_BACK",
            )
            failure = refused.detail(operation_result_pb2.OperationFailure)
            assert failure is not None
            assert (failure.disposition, failure.retryable) == (operation_result_pb2.DISPOSITION_HOLD, False)
        assert (await refusal(customer.validate(key_id))).reason == "CUSTODY_LOG_ROLLED_BACK"
        assert await control.ledger(after=last) == []
    accepted = await operator.custody.accept_restore(
        account_service_pb2.AcceptCustodyRestoreRequest(
            actor="operator-1", witnessed_size=found.witnessed_size, reason="restored on purpose"
        )
    )
    assert accepted.witness.state == account_service_pb2.CUSTODY_STATE_CONSISTENT
    assert accepted.witness.checkpoint != found.checkpoint
    # The control: only the witness stood between the revoked key and the provider. Accepting without revoking again
    # gives it back, on both replicas within a moment.
    spent = await eventually(lambda: outcome(customer), lambda seen: seen.response is not None)
    assert spent.response is not None
    assert spent.response.verdict == operation_service_pb2.GUARDRAIL_VERDICT_ALLOW
    await customer.revoke(key_id)
    assert reason_of(await outcome(customer)) in _REVOKED


@pytest.mark.timeout(200)
async def test_a_restored_vault_that_has_lived_on_is_found_by_a_witness_that_was_away(tmp_path: Path) -> None:
    """No size tells: its log is longer than what was witnessed, and proves every entry but those that are gone."""
    async with running(tmp_path, meterings=1) as (suite, operator):
        stack, vault, customer = suite.stack, Vault(suite.stack), Customer(suite)
        await customer.set_up("openai")
        await vault.take_copy()
        second = await patiently(lambda: customer.add_key("anthropic"))
        revoked = await customer.revoke(second.key_id)
        before = await eventually(
            lambda: witness(operator), lambda seen: seen.witnessed_size >= revoked.authority_index
        )
        stack.kill9("metering")
        await vault.put_back()
        await patiently(lambda: customer.add_key("anthropic"))
        for _ in range(before.witnessed_size):
            await customer.add_key("anthropic")
        await stack.start_again("metering")
        found = await eventually(
            lambda: witness(operator), lambda seen: seen.state == account_service_pb2.CUSTODY_STATE_ROLLED_BACK
        )
        assert "does not continue" in found.description
        assert (found.witnessed_size, found.checkpoint) == (before.witnessed_size, before.checkpoint)
        assert int(found.contradicting_checkpoint.split("\n")[1]) > before.witnessed_size
        assert reason_of(await outcome(customer)) == "CUSTODY_LOG_ROLLED_BACK"
