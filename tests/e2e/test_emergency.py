"""The emergency stop and shared keys, through the three real services: what callers get, and what the provider sees."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from byok.keyvault.v1 import (
    emergency_service_pb2,
    emergency_service_pb2_grpc,
    key_service_pb2,
    provider_key_pb2,
)
from byok.metering.v1 import account_service_pb2
from byok.router.v1 import provider_service_pb2
from byok.router.v1.operation_result_pb2 import DISPOSITION_HOLD, OperationFailure
from byok.type.v1 import account_pb2, operation_pb2
from servicekit.wire import RemoteError, error_from_rpc
from testkit.simulator.client import SimulatorControl
from testkit.simulator.ledger import key_fingerprint
from testkit.simulator.vendors import make_key
from testkit.stack.customer import Customer, Suite, new_request_id
from testkit.stack.load import Load
from testkit.stack.stack import Stack, StackOptions

OPERATOR = account_pb2.Principal(operator_id="operator-1")
# A request that was on its way when the halt returned may still be read by the provider.
_ON_ITS_WAY_SECONDS = 0.25
_WATCHED_SECONDS = 1.5


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Run two replicas of whoever gives leases, and of whoever holds them; each test ends what it halts."""
    options = StackOptions(keyvaults=2, routers=2, is_durable=False, is_kept=False)
    async with Stack(tmp_path_factory.mktemp("emergency"), options=options) as running:
        yield running


class Emergency:
    """An operator who stops and resumes."""

    def __init__(self, suite: Suite) -> None:
        self._stub = emergency_service_pb2_grpc.EmergencyServiceStub(suite.channel("keyvault", "operator"))

    async def halt(self, scope: emergency_service_pb2.HaltScope) -> emergency_service_pb2.HaltResponse:
        """Halt a scope; when this returns, no call starts in it."""
        request = emergency_service_pb2.HaltRequest(
            request_id=new_request_id(), acting_for=OPERATOR, actor="test", scope=scope, reason="a test"
        )
        return await self._stub.Halt(request)

    async def resume(self, halt_id: str) -> None:
        """End a halt."""
        request = emergency_service_pb2.ResumeRequest(
            request_id=new_request_id(), acting_for=OPERATOR, actor="test", halt_id=halt_id
        )
        await self._stub.Resume(request)


async def refusal(customer: Customer) -> RemoteError:
    """Return how an operation of the customer's is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await customer.evaluate()
    return error_from_rpc(refused.value)


def ensure_held(error: RemoteError, scope: str) -> None:
    """Check that content is to be held until a scope is resumed."""
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "HALTED")
    assert error.metadata == {"haltScope": scope}
    failure = error.detail(OperationFailure)
    assert failure is not None
    assert (failure.disposition, failure.retryable) == (DISPOSITION_HOLD, False)


async def test_no_call_starts_after_a_halt_has_returned(stack: Stack) -> None:
    """An owner under load on both Routers: their callers are held, another owner's are served, and a resume works."""
    async with Suite(stack) as suite, SimulatorControl(stack.simulator) as control:
        halted, other = Customer(suite), Customer(suite)
        for customer in (halted, other):
            await customer.set_up("openai")
        emergency = Emergency(suite)
        load = Load([halted, other], workers=8)
        load.start()
        await load.wait_for(40)
        scope = emergency_service_pb2.HaltScope(owner_id=halted.owner_id)
        answer = await emergency.halt(scope)
        await asyncio.sleep(_ON_ITS_WAY_SECONDS)
        last = (await control.ledger())[-1].call_id
        await load.wait_for(10)
        await asyncio.sleep(_WATCHED_SECONDS)
        outcomes = await load.stop()
        late = {entry.key_fingerprint for entry in await control.ledger(after=last)}
        ensure_held(await refusal(halted), f"owner/{halted.owner_id}")
        await emergency.resume(answer.halt.halt_id)
        assert (await halted.evaluate()).receipt.attempts == 1
    assert answer.acknowledged_watchers == 2
    assert late == {key_fingerprint(other.secret("openai"))}
    assert {outcome.error.reason for outcome in outcomes if outcome.error is not None} == {"HALTED"}


async def test_nobody_pays_for_what_is_halted(stack: Stack) -> None:
    """A halted provider is not "no key": the owner's next key and the platform's money stay where they are."""
    async with Suite(stack) as suite, SimulatorControl(stack.simulator) as control:
        customer = Customer(suite)
        await customer.set_up("openai")
        await customer.validate((await customer.add_key("anthropic")).key_id)
        emergency = Emergency(suite)
        halt = (await emergency.halt(emergency_service_pb2.HaltScope(provider="openai"))).halt
        before = len(await control.ledger())
        ensure_held(await refusal(customer), "provider/openai")
        assert len(await control.ledger()) == before
        await emergency.resume(halt.halt_id)
        await customer.evaluate()


async def test_an_organization_shares_a_key_with_one_of_two_agents(stack: Stack) -> None:
    """The agent with the share is served on the organization's money; the other, and after an unshare both, are not."""
    async with Suite(stack) as suite:
        organization_id = "org-of-this-test"
        shared, other = Customer(suite), Customer(suite)
        for customer in (shared, other):
            await suite.accounts.RegisterAgent(
                account_service_pb2.RegisterAgentRequest(
                    request_id=new_request_id(),
                    acting_for=account_pb2.Principal(owner_id=customer.owner_id, organization_ids=[organization_id]),
                    actor="test",
                    agent_id=customer.agent_id,
                    owner_id=customer.owner_id,
                    organization_id=organization_id,
                )
            )
        member = account_pb2.Principal(owner_id=shared.owner_id, organization_ids=[organization_id])
        key = await _organization_key(suite, member, organization_id)
        await suite.keys.ShareKey(
            key_service_pb2.ShareKeyRequest(
                request_id=new_request_id(),
                acting_for=member,
                actor="test",
                key_id=key.key_id,
                agent_id=shared.agent_id,
                operations=[operation_pb2.OPERATION_GUARDRAIL_EVALUATION],
            )
        )
        receipt = (await shared.evaluate()).receipt
        assert (receipt.payer, receipt.key_id) == (account_pb2.PAYER_ORGANIZATION, key.key_id)
        assert receipt.payer_rule == "organization_key"
        assert (await refusal(other)).reason == "BYOK_KEY_REQUIRED"
        with pytest.raises(grpc.aio.AioRpcError):
            await shared.embed(["not shared for this"])
        await suite.keys.UnshareKey(
            key_service_pb2.UnshareKeyRequest(
                request_id=new_request_id(),
                acting_for=member,
                actor="test",
                key_id=key.key_id,
                agent_id=shared.agent_id,
            )
        )
        assert (await refusal(shared)).reason == "BYOK_KEY_REQUIRED"


async def _organization_key(
    suite: Suite, member: account_pb2.Principal, organization_id: str
) -> provider_key_pb2.ProviderKey:
    """Create a key of an organization and have it tested, on behalf of a member."""
    created = await suite.keys.CreateKey(
        key_service_pb2.CreateKeyRequest(
            request_id=new_request_id(),
            acting_for=member,
            actor="test",
            scope=provider_key_pb2.KEY_SCOPE_ORGANIZATION,
            organization_id=organization_id,
            provider="openai",
            base_url=suite.stack.simulator.base_url("openai"),
            plaintext=make_key("openai", organization_id).encode(),
        )
    )
    validated = await suite.providers.ValidateKey(
        provider_service_pb2.ValidateKeyRequest(
            request_id=new_request_id(), acting_for=member, actor="test", key_id=created.key.key_id
        )
    )
    assert validated.verdict == provider_service_pb2.KEY_VERDICT_VALID
    assert validated.receipt.payer == account_pb2.PAYER_ORGANIZATION
    return validated.key
