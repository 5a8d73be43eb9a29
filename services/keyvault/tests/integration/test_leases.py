"""What is leased to whom, over real gRPC: selection, states, sealing, and what an item is refused for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
from cryptography.exceptions import InvalidTag
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from byok.keyvault.v1 import key_service_pb2, lease_pb2, lease_service_pb2, provider_key_pb2
from byok.type.v1 import account_pb2, embedding_space_pb2, operation_pb2
from keyvault.settings import LeaseSettings
from servicekit.wire import remote_error
from services.keyvault.tests.integration.vault import (
    SECRET,
    agent_item,
    create_request,
    name,
    new_id,
    owner,
    revoke_request,
    validation_item,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.keyvault.tests.integration.vault import RouterProcess, Vault

pytestmark = pytest.mark.asyncio(loop_scope="session")

OPENAI = b"sk-proj-" + b"a" * 40
EMBEDDING = operation_pb2.OPERATION_EMBEDDING_GENERATION
KIND = lease_service_pb2.OutcomeKind


class Owner:
    """An owner with one agent."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self.owner_id = name("owner")
        self.agent_id = name("agent")

    async def bind(self) -> None:
        """Register the agent."""
        await self.vault.bind(self.agent_id, self.owner_id)

    async def key(self, **fields: Any) -> provider_key_pb2.ProviderKey:
        """Add a key that works."""
        return await self.vault.working_key(**({"acting_for": owner(self.owner_id)} | fields))

    def item(self, **fields: Any) -> lease_pb2.LeaseItem:
        """Return an item for the agent."""
        return agent_item(self.agent_id, **fields)


@pytest_asyncio.fixture(loop_scope="session")
async def customer(shared_vault: Vault) -> Owner:
    """Return an owner whose agent is registered."""
    made = Owner(shared_vault)
    await made.bind()
    return made


@pytest_asyncio.fixture(loop_scope="session")
async def router(shared_vault: Vault) -> RouterProcess:
    """Return a Router process."""
    return await shared_vault.router()


async def report(router: RouterProcess, key: provider_key_pb2.ProviderKey, kind: Any, **fields: Any) -> int:
    """Report how a call on a key went, and return the key's state."""
    if "lease_id" not in fields:
        fields["lease_id"] = (await router.lease_for_validation(key.key_id)).lease_id
    outcome = lease_service_pb2.LeaseOutcome(
        key_id=key.key_id, **({"key_version": key.key_version, "kind": kind} | fields)
    )
    request = lease_service_pb2.ReportOutcomesRequest(holder=router.holder, outcomes=[outcome])
    state: int = (await router.leases.ReportOutcomes(request)).results[0].state
    return state


async def test_a_lease_says_what_a_router_needs(customer: Owner, router: RouterProcess) -> None:
    """Account, owner, key, version, mapping, life and index; the secret and the base URL only inside the seal."""
    key = await customer.key(
        mapping=[provider_key_pb2.OperationRoute(operation=operation_pb2.OPERATION_CHAT, model="claude-haiku-4-5")]
    )
    response = await router.acquire(customer.item())
    lease = response.results[0].lease
    mine = account_pb2.Account(owner_id=customer.owner_id)
    assert (lease.account, lease.owned_by, lease.owner_id) == (mine, mine, customer.owner_id)
    assert (lease.key_id, lease.key_version, lease.provider) == (key.key_id, 1, "anthropic")
    assert (lease.custody, lease.state, list(lease.mapping)) == (key.custody, key.state, list(key.mapping))
    assert lease.life.ToTimedelta().total_seconds() == 60
    assert lease.authority_index > lease.binding_index > 0
    (sealed,) = router.open(response)
    assert (sealed.lease_id, sealed.key_id, sealed.key_version) == (lease.lease_id, key.key_id, 1)
    assert (sealed.secret, sealed.base_url) == (SECRET, "https://api.anthropic.com")
    assert SECRET not in response.SerializeToString()


async def test_a_batch_is_one_sealed_message(customer: Owner, router: RouterProcess) -> None:
    """Items are answered in order, each granted one pointing at its place in the one message."""
    await customer.key()
    unknown = agent_item(name("agent"))
    response = await router.acquire(customer.item(), unknown, customer.item())
    kinds = [result.WhichOneof("result") for result in response.results]
    assert kinds == ["lease", "error", "lease"]
    assert remote_error(response.results[1].error).reason == "AGENT_NOT_FOUND"
    opened = router.open(response)
    for result in (response.results[0], response.results[2]):
        assert opened[result.lease.sealed_index].lease_id == result.lease.lease_id
    assert len({lease.lease_id for lease in opened}) == 2


async def test_leases_open_for_the_asking_process_alone(
    shared_vault: Vault, customer: Owner, router: RouterProcess
) -> None:
    """Another process with the same certificate opens nothing."""
    await customer.key()
    response = await router.acquire(customer.item())
    with pytest.raises(InvalidTag):
        (await shared_vault.router()).open(response)


async def test_an_agent_without_keys_gets_the_cause(customer: Owner, router: RouterProcess) -> None:
    """No key, none for the operation, none that works: three causes, each with its index and life."""
    nothing = (await router.acquire(customer.item())).results[0].no_usable_key
    assert nothing.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY
    assert (nothing.owner_id, nothing.account.owner_id) == (customer.owner_id, customer.owner_id)
    assert nothing.authority_index >= nothing.binding_index > 0
    key = await customer.key()
    item = lease_pb2.LeaseItem(agent=lease_pb2.AgentPurpose(agent_id=customer.agent_id, operation=EMBEDDING))
    unable = (await router.acquire(item)).results[0].no_usable_key
    assert unable.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY_FOR_OPERATION
    await report(router, key, KIND.OUTCOME_KIND_RATE_LIMITED, retry_after=Duration(seconds=100))
    resting = (await router.acquire(customer.item())).results[0].no_usable_key
    assert resting.cause == lease_pb2.NO_KEY_CAUSE_NO_USABLE_KEY
    assert 90 < resting.retry_after.ToTimedelta().total_seconds() <= 100


async def test_providers_exclusions_and_spaces_narrow_the_choice(customer: Owner, router: RouterProcess) -> None:
    """A Router gets the next key, the provider, or the space that it asks for."""
    first = await customer.key(priority=1)
    second = await customer.key(provider="openai", plaintext=OPENAI, priority=2)

    async def leased(item: lease_pb2.LeaseItem) -> str:
        key_id: str = (await router.acquire(item)).results[0].lease.key_id
        return key_id

    assert await leased(customer.item()) == first.key_id
    assert await leased(customer.item(excluded_key_ids=[first.key_id])) == second.key_id
    assert await leased(customer.item(providers=["openai"])) == second.key_id
    embed = lease_pb2.AgentPurpose(agent_id=customer.agent_id, operation=EMBEDDING)
    small = embedding_space_pb2.EmbeddingSpace(maker="openai", model="text-embedding-3-small", dimensions=1024)
    other = embedding_space_pb2.EmbeddingSpace(maker="voyage", model="voyage-3", dimensions=1024)
    assert await leased(lease_pb2.LeaseItem(agent=embed, required_space=small)) == second.key_id
    refused = await router.acquire(lease_pb2.LeaseItem(agent=embed, required_space=other))
    assert refused.results[0].no_usable_key.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY_FOR_OPERATION


async def test_acting_for_another_owner_finds_no_agent(customer: Owner, router: RouterProcess) -> None:
    """The principal that travels with a lease is compared with the binding."""
    await customer.key()
    purpose = lease_pb2.AgentPurpose(
        agent_id=customer.agent_id, operation=operation_pb2.OPERATION_CHAT, acting_for=owner(name("owner"))
    )
    stranger = await router.acquire(lease_pb2.LeaseItem(agent=purpose))
    assert remote_error(stranger.results[0].error).reason == "AGENT_NOT_FOUND"
    purpose.acting_for.CopyFrom(owner(customer.owner_id))
    assert (await router.acquire(lease_pb2.LeaseItem(agent=purpose))).results[0].WhichOneof("result") == "lease"


async def test_a_moved_agent_leaves_its_old_owners_keys(customer: Owner, router: RouterProcess) -> None:
    """After a transfer neither the old owner's keys nor the agent's own of then are leased."""
    await customer.key()
    await customer.key(scope=provider_key_pb2.KEY_SCOPE_AGENT, agent_id=customer.agent_id)
    assert (await router.acquire(customer.item())).results[0].WhichOneof("result") == "lease"
    await customer.vault.bind(
        customer.agent_id, name("owner"), account=account_pb2.Account(organization_id="org"),
        expected_account=account_pb2.Account(owner_id=customer.owner_id),
    )  # fmt: skip
    moved = (await router.acquire(customer.item())).results[0]
    assert moved.no_usable_key.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY
    assert moved.no_usable_key.account.organization_id == "org"


async def test_validation_tests_any_key_of_its_owner_but_a_revoked_one(
    shared_vault: Vault, customer: Owner, router: RouterProcess
) -> None:
    """A rejected key can be tested again; another owner's is not found, a revoked one is told so."""
    key = await customer.key()
    await router.validate(key.key_id, verdict=lease_service_pb2.VALIDATION_VERDICT_REJECTED)
    item = validation_item(key.key_id, customer.owner_id)
    tested = await router.acquire(item, validation_item(key.key_id, name("owner")))
    assert router.open(tested)[0].secret == SECRET
    assert remote_error(tested.results[1].error).reason == "PROVIDER_KEY_NOT_FOUND"
    keys = await shared_vault.keys()
    await keys.RevokeKey(revoke_request(key.key_id, acting_for=owner(customer.owner_id)))
    revoked = await router.acquire(item)
    assert remote_error(revoked.results[0].error).reason == "PROVIDER_KEY_REVOKED"
    assert not revoked.sealed_leases


async def test_a_test_call_is_limited_by_the_organization_of_the_agents(
    shared_vault: Vault, customer: Owner, router: RouterProcess
) -> None:
    """An owner whose agents are in an organization tests a key on that account: the owner has none of their own."""
    key = await customer.key()
    await shared_vault.bind(
        customer.agent_id,
        customer.owner_id,
        account=account_pb2.Account(organization_id="org"),
        expected_account=account_pb2.Account(owner_id=customer.owner_id),
    )
    lease = (await router.acquire(validation_item(key.key_id, customer.owner_id))).results[0].lease
    assert (lease.account.organization_id, lease.owner_id) == ("org", customer.owner_id)
    assert lease.owned_by.owner_id == customer.owner_id
    assert lease.binding_index > 0


async def test_outcomes_move_the_key(customer: Owner, router: RouterProcess) -> None:
    """No credit takes a key out of use; no outcome brings it back or makes it worse, a test call does."""
    key = await customer.key()
    kinds = lease_service_pb2.OutcomeKind
    assert await report(router, key, kinds.OUTCOME_KIND_PROVIDER_UNAVAILABLE) == provider_key_pb2.KEY_STATE_ACTIVE
    assert await report(router, key, kinds.OUTCOME_KIND_NO_CREDIT) == provider_key_pb2.KEY_STATE_NO_CREDIT
    assert await report(router, key, kinds.OUTCOME_KIND_SUCCEEDED) == provider_key_pb2.KEY_STATE_NO_CREDIT
    assert await report(router, key, kinds.OUTCOME_KIND_KEY_REJECTED) == provider_key_pb2.KEY_STATE_NO_CREDIT
    assert (await router.acquire(customer.item())).results[0].WhichOneof("result") == "no_usable_key"
    assert (await router.validate(key.key_id)).state == provider_key_pb2.KEY_STATE_ACTIVE


async def test_one_rejection_does_not_take_a_key_out_of_use(customer: Owner, router: RouterProcess) -> None:
    """It fails, and is leased, until a test call says whose fault it was."""
    key = await customer.key()
    rejected = lease_service_pb2.OutcomeKind.OUTCOME_KIND_KEY_REJECTED
    for _ in range(2):
        assert await report(router, key, rejected) == provider_key_pb2.KEY_STATE_FAILING
    lease = (await router.acquire(customer.item())).results[0].lease
    assert (lease.key_id, lease.state) == (key.key_id, provider_key_pb2.KEY_STATE_FAILING)
    verdict = lease_service_pb2.VALIDATION_VERDICT_REJECTED
    assert (await router.validate(key.key_id, verdict=verdict)).state == provider_key_pb2.KEY_STATE_INVALID


async def test_a_report_on_a_lease_that_was_not_granted_is_refused(
    shared_vault: Vault, customer: Owner, router: RouterProcess
) -> None:
    """Another process's lease, another version, another key and a made-up id say nothing of any key."""
    key, other = await customer.key(), await customer.key()
    lease_id = (await router.lease_for_validation(key.key_id)).lease_id
    no_credit = lease_service_pb2.OutcomeKind.OUTCOME_KIND_NO_CREDIT
    usual: dict[str, Any] = {"lease_id": lease_id, "key_id": key.key_id, "key_version": 1, "kind": no_credit}
    changes: list[dict[str, Any]] = [{"lease_id": new_id()}, {"key_version": 2}, {"key_id": other.key_id}]
    outcomes = [lease_service_pb2.LeaseOutcome(**(usual | change)) for change in changes]
    thief = await shared_vault.router()
    for holder, refused in ((router.holder, outcomes), (thief.holder, [lease_service_pb2.LeaseOutcome(**usual)])):
        request = lease_service_pb2.ReportOutcomesRequest(holder=holder, outcomes=refused)
        results = (await router.leases.ReportOutcomes(request)).results
        assert {remote_error(result.error).reason for result in results} == {"LEASE_UNKNOWN"}
    assert (await router.acquire(customer.item())).results[0].lease.state == provider_key_pb2.KEY_STATE_ACTIVE
    request = lease_service_pb2.ReportOutcomesRequest(
        holder=router.holder, outcomes=[lease_service_pb2.LeaseOutcome(**usual)]
    )
    assert (await router.leases.ReportOutcomes(request)).results[0].state == provider_key_pb2.KEY_STATE_NO_CREDIT


async def test_a_late_outcome_of_an_old_secret_changes_nothing(
    shared_vault: Vault, customer: Owner, router: RouterProcess
) -> None:
    """After a replacement, what was called with the old secret says nothing of the new one."""
    key = await customer.key()
    old = (await router.lease_for_validation(key.key_id)).lease_id
    keys = await shared_vault.keys()
    await keys.ReplaceKeySecret(
        key_service_pb2.ReplaceKeySecretRequest(
            request_id=new_id(),
            acting_for=owner(customer.owner_id),
            actor="test",
            key_id=key.key_id,
            plaintext=SECRET + b"2",
        )
    )
    await router.validate(key.key_id, key_version=2)
    rejected = lease_service_pb2.OutcomeKind.OUTCOME_KIND_KEY_REJECTED
    assert await report(router, key, rejected, key_version=1, lease_id=old) == provider_key_pb2.KEY_STATE_ACTIVE
    response = await router.acquire(customer.item())
    assert (response.results[0].lease.key_version, router.open(response)[0].secret) == (2, SECRET + b"2")


async def test_an_update_is_in_the_next_lease(shared_vault: Vault, customer: Owner, router: RouterProcess) -> None:
    """Custody and mapping travel with the lease, and a stale choice is not granted."""
    key = await customer.key()
    await router.acquire(customer.item())
    await (await shared_vault.keys()).UpdateKey(
        key_service_pb2.UpdateKeyRequest(
            request_id=new_id(),
            acting_for=owner(customer.owner_id),
            actor="test",
            key_id=key.key_id,
            update_mask=FieldMask(paths=["custody", "priority"]),
            custody=provider_key_pb2.CUSTODY_STRICT,
        )
    )
    lease = (await router.acquire(customer.item())).results[0].lease
    assert lease.custody == provider_key_pb2.CUSTODY_STRICT


async def test_the_platforms_key_serves_platform_items_alone(
    shared_vault: Vault, customer: Owner, router: RouterProcess
) -> None:
    """An agent without a key never gets the platform's; a platform item does, with no owner named."""
    operators = await shared_vault.keys("operator")
    created = await operators.CreateKey(
        create_request(
            acting_for=account_pb2.Principal(operator_id="op"), scope=provider_key_pb2.KEY_SCOPE_PLATFORM, priority=0
        )
    )
    await router.validate(created.key.key_id)
    platform = lease_pb2.LeaseItem(
        platform=lease_pb2.PlatformPurpose(operation=operation_pb2.OPERATION_SAFETY_ESCALATION)
    )
    response = await router.acquire(customer.item(), platform)
    assert response.results[0].no_usable_key.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY
    lease = response.results[1].lease
    assert (lease.key_id, lease.account.platform, lease.owner_id, lease.binding_index) == (
        created.key.key_id,
        True,
        "",
        0,
    )


async def test_many_calls_at_once_are_all_answered(customer: Owner, router: RouterProcess) -> None:
    """Calls that share a reading and an append each get their own leases."""
    await customer.key()
    responses = await asyncio.gather(*(router.acquire(customer.item()) for _ in range(64)))
    leases = {router.open(response)[0].lease_id for response in responses}
    assert len(leases) == 64
    assert len({response.results[0].lease.authority_index for response in responses}) == 64


@pytest.mark.asyncio(loop_scope="function")
async def test_a_caller_cannot_drain_the_vault(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """Distinct keys a minute are bounded, the excess is typed and alarmed, and known keys go on."""
    customers = [Owner(await start_vault()) for _ in range(3)]
    vault = await start_vault(leases=LeaseSettings(distinct_keys_per_minute_max=2))
    for customer in customers:
        await customer.bind()
        await customer.key()
    router = await vault.router()
    response = await router.acquire(*(customer.item() for customer in customers), customers[0].item())
    assert [result.WhichOneof("result") for result in response.results] == ["lease", "lease", "error", "lease"]
    error = remote_error(response.results[2].error)
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert error.retry_after is not None
    assert vault.metrics.registry.get_sample_value("keyvault_lease_bound_reached_total") == 1
