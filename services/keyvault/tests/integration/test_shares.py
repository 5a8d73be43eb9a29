"""Keys of an organization: who may touch them, which agents they serve, on what terms, and how that ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask

from byok.keyvault.v1 import key_service_pb2, lease_pb2, lease_service_pb2, provider_key_pb2
from byok.type.v1 import account_pb2, operation_pb2
from keyvault.domain.audit_log import EntryKind, decode_leaf
from servicekit.wire import remote_error
from services.keyvault.tests.integration.test_watching import watching
from services.keyvault.tests.integration.vault import (
    GUARDRAIL,
    SECRET,
    agent_item,
    create_request,
    member,
    name,
    new_id,
    owner,
    refusal,
    revoke_request,
    share_request,
    unshare_request,
)

if TYPE_CHECKING:
    from services.keyvault.tests.integration.vault import RouterProcess, Vault

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = operation_pb2.OPERATION_CHAT
ORGANIZATION_SCOPE = provider_key_pb2.KEY_SCOPE_ORGANIZATION


class Organization:
    """An organization of one test, with two agents of two of its owners and a key."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self.id = name("org")
        self.agents = (name("agent"), name("agent"))
        self.owners = (name("owner"), name("owner"))
        self.key = provider_key_pb2.ProviderKey()

    async def begin(self) -> None:
        """Bind the agents and make the key."""
        for agent_id, owner_id in zip(self.agents, self.owners, strict=True):
            await self.vault.bind(agent_id, owner_id, account=account_pb2.Account(organization_id=self.id))
        self.key = await self.vault.organization_key(self.id)

    @property
    def member(self) -> account_pb2.Principal:
        """Return a member."""
        return member(self.id, self.owners[0])

    async def share(self, agent: int = 0, **fields: Any) -> provider_key_pb2.KeyShare:
        """Share the key with an agent."""
        request = share_request(self.key.key_id, self.agents[agent], **({"acting_for": self.member} | fields))
        share: provider_key_pb2.KeyShare = (await (await self.vault.keys()).ShareKey(request)).share
        return share

    async def unshare(self, agent: int = 0, **fields: Any) -> key_service_pb2.UnshareKeyResponse:
        """End the share."""
        request = unshare_request(self.key.key_id, self.agents[agent], **({"acting_for": self.member} | fields))
        ended: key_service_pb2.UnshareKeyResponse = await (await self.vault.keys()).UnshareKey(request)
        return ended


@pytest_asyncio.fixture(loop_scope="session")
async def organization(shared_vault: Vault) -> Organization:
    """Return an organization at the shared KeyVault."""
    made = Organization(shared_vault)
    await made.begin()
    return made


@pytest_asyncio.fixture(loop_scope="session")
async def router(shared_vault: Vault) -> RouterProcess:
    """Return a Router process."""
    return await shared_vault.router()


async def test_a_shared_key_serves_the_agents_that_it_is_shared_with_and_no_others(
    organization: Organization, router: RouterProcess
) -> None:
    """One of two agents leases it; the lease names the share, the organization that owns and pays, and the entry."""
    share = await organization.share(cap=provider_key_pb2.ShareCap(day_calls=7))
    response = await router.acquire(*(agent_item(agent_id) for agent_id in organization.agents))
    lease, none = response.results[0].lease, response.results[1].no_usable_key
    assert (lease.key_id, lease.scope) == (organization.key.key_id, ORGANIZATION_SCOPE)
    assert lease.share == share
    assert (share.cap.day_calls, list(share.operations)) == (7, [GUARDRAIL])
    assert lease.owned_by.organization_id == lease.account.organization_id == organization.id
    assert lease.owner_id == organization.owners[0]
    assert router.open(response)[0].secret == SECRET
    assert none.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY
    rows = await organization.vault.sql("SELECT leaf FROM audit_entries WHERE audit_index = $1", lease.authority_index)
    assert dict(decode_leaf(rows[0]["leaf"]).details)["share_index"] == str(share.terms_index)


async def test_a_share_covers_its_operations_and_no_others(organization: Organization, router: RouterProcess) -> None:
    """An operation that is not shared finds no key for it; new terms take the place of the old ones."""
    first = await organization.share()
    chat = lease_pb2.LeaseItem(agent=lease_pb2.AgentPurpose(agent_id=organization.agents[0], operation=CHAT))
    refused = (await router.acquire(chat)).results[0].no_usable_key
    assert refused.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY_FOR_OPERATION
    second = await organization.share(operations=[CHAT])
    assert second.terms_index > first.terms_index
    assert second.create_time == first.create_time
    results = (await router.acquire(chat, agent_item(organization.agents[0]))).results
    assert results[0].lease.share.terms_index == second.terms_index
    assert results[1].no_usable_key.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY_FOR_OPERATION


async def test_own_keys_come_before_the_organizations(organization: Organization, router: RouterProcess) -> None:
    """AGENT, OWNER, ORGANIZATION: scope decides before priority."""
    vault, agent_id, owner_id = organization.vault, organization.agents[0], organization.owners[0]
    await organization.share()
    keys = await vault.keys()
    await keys.UpdateKey(
        key_service_pb2.UpdateKeyRequest(
            request_id=new_id(),
            acting_for=organization.member,
            actor="test",
            key_id=organization.key.key_id,
            update_mask=FieldMask(paths=["priority"]),
            priority=0,
        )
    )
    of_owner = await vault.working_key(acting_for=owner(owner_id))
    of_agent = await vault.working_key(
        acting_for=owner(owner_id), scope=provider_key_pb2.KEY_SCOPE_AGENT, agent_id=agent_id
    )
    order = [of_agent.key_id, of_owner.key_id, organization.key.key_id]
    tried: list[str] = []
    for expected in order:
        item = agent_item(agent_id, excluded_key_ids=tried)
        assert (await router.acquire(item)).results[0].lease.key_id == expected
        tried.append(expected)
    listed = await router.leases.ListCandidates(
        lease_service_pb2.ListCandidatesRequest(agent=lease_pb2.AgentPurpose(agent_id=agent_id, operation=GUARDRAIL))
    )
    assert [candidate.key.key_id for candidate in listed.candidates] == order
    assert listed.candidates[2].share.agent_id == agent_id
    assert listed.binding.agent_id == agent_id


async def test_candidates_are_told_why_they_would_be_passed_over(
    organization: Organization, router: RouterProcess
) -> None:
    """Each verdict by the rule that leases go by; nothing is leased and nothing is logged."""
    vault, agent_id, owner_id = organization.vault, organization.agents[0], organization.owners[0]
    verdicts = lease_service_pb2.CandidateVerdict
    await organization.share()
    pending = (await (await vault.keys()).CreateKey(create_request(acting_for=owner(owner_id)))).key

    async def judged(operation: Any) -> dict[str, Any]:
        request = lease_service_pb2.ListCandidatesRequest(
            agent=lease_pb2.AgentPurpose(agent_id=agent_id, operation=operation)
        )
        answer = await router.leases.ListCandidates(request)
        assert SECRET not in answer.SerializeToString()
        return {candidate.key.key_id: candidate.verdict for candidate in answer.candidates}

    before = await vault.sql("SELECT count(*) FROM audit_entries WHERE kind = $1", int(EntryKind.LEASE_GRANTED))
    assert await judged(GUARDRAIL) == {
        pending.key_id: verdicts.CANDIDATE_VERDICT_NOT_WORKING,
        organization.key.key_id: verdicts.CANDIDATE_VERDICT_USABLE,
    }
    assert (await judged(CHAT))[organization.key.key_id] == verdicts.CANDIDATE_VERDICT_NOT_SHARED
    embedding = await judged(operation_pb2.OPERATION_EMBEDDING_GENERATION)
    assert embedding[pending.key_id] == verdicts.CANDIDATE_VERDICT_CANNOT_SERVE
    after = await vault.sql("SELECT count(*) FROM audit_entries WHERE kind = $1", int(EntryKind.LEASE_GRANTED))
    assert before == after
    unknown = lease_service_pb2.ListCandidatesRequest(
        agent=lease_pb2.AgentPurpose(agent_id=name("agent"), operation=GUARDRAIL)
    )
    assert (await refusal(router.leases.ListCandidates(unknown))).reason == "AGENT_NOT_FOUND"


async def test_after_an_unshare_the_agent_leases_nothing(organization: Organization, router: RouterProcess) -> None:
    """It is idempotent, told to watchers by key and agent, and the same agent can be shared with again."""
    vault = organization.vault
    async with watching(vault) as watch:
        first = await organization.share()
        watch.ping()
        await watch.until(lambda: len(watch.echoes) == 1)
        ended = await organization.unshare()
        await watch.until(lambda: bool(watch.heard) and watch.heard[-1].authority_index == ended.authority_index)
    assert ended.acknowledged_watchers >= 1
    kinds = lease_service_pb2
    told = [change for change in watch.heard if change.key_id == organization.key.key_id]
    assert [(change.kind, change.agent_id, change.organization_id) for change in told] == [
        (kinds.AUTHORITY_CHANGE_KIND_KEY_SHARED, organization.agents[0], ""),
        (kinds.AUTHORITY_CHANGE_KIND_KEY_UNSHARED, organization.agents[0], ""),
    ]
    item = agent_item(organization.agents[0])
    assert (await router.acquire(item)).results[0].no_usable_key.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY
    assert (await organization.unshare()).authority_index == ended.authority_index
    again = await organization.share()
    assert again.terms_index > ended.authority_index > first.terms_index
    assert again.create_time.ToDatetime() > first.create_time.ToDatetime()
    assert (await router.acquire(item)).results[0].lease.share == again


async def test_a_share_does_not_outlive_the_agents_membership(
    organization: Organization, router: RouterProcess
) -> None:
    """An agent that was moved elsewhere leases nothing by the share that it had."""
    await organization.share()
    await organization.vault.bind(
        organization.agents[0],
        name("owner"),
        account=account_pb2.Account(organization_id=name("org")),
        expected_account=account_pb2.Account(organization_id=organization.id),
    )
    result = (await router.acquire(agent_item(organization.agents[0]))).results[0]
    assert result.no_usable_key.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY


async def test_repeated_requests_get_the_first_answer(organization: Organization) -> None:
    """Sharing and unsharing are idempotent by request id; another body under the same id is refused."""
    keys = await organization.vault.keys()
    request = share_request(organization.key.key_id, organization.agents[0], acting_for=organization.member)
    first = (await keys.ShareKey(request)).share
    await organization.share(operations=[CHAT])
    assert (await keys.ShareKey(request)).share == first
    request.agent_id = organization.agents[1]
    assert (await refusal(keys.ShareKey(request))).reason == "REQUEST_ID_REUSED"
    same = await organization.share(operations=[CHAT])
    assert (await organization.share(operations=[CHAT])).terms_index == same.terms_index


STRANGERS = {
    "a stranger": lambda _: owner(name("owner")),
    "a member of another organization": lambda _: member(name("org")),
    "the agent's owner, not asserted a member": lambda it: owner(it.owners[0]),
    "an operator": lambda _: account_pb2.Principal(operator_id="op"),
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS)
async def test_who_is_not_asserted_a_member_touches_no_key_of_the_organization(
    organization: Organization, stranger: Any
) -> None:
    """Every RPC that names the key says that there is none, and its listing is refused."""
    await organization.share()
    key_id, agent_id = organization.key.key_id, organization.agents[0]
    common: dict[str, Any] = {"acting_for": stranger(organization), "key_id": key_id}
    changing = common | {"request_id": new_id(), "actor": "test"}
    keys = await organization.vault.keys("operator")
    calls = {
        "GetKey": key_service_pb2.GetKeyRequest(**common),
        "UpdateKey": key_service_pb2.UpdateKeyRequest(**changing, update_mask=FieldMask(paths=["label"])),
        "ReplaceKeySecret": key_service_pb2.ReplaceKeySecretRequest(**changing, plaintext=SECRET),
        "RevokeKey": key_service_pb2.RevokeKeyRequest(**changing),
        "ShareKey": share_request(agent_id=agent_id, **changing),
        "UnshareKey": unshare_request(agent_id=agent_id, **changing),
        "ListShares": key_service_pb2.ListSharesRequest(**common),
        "FindDuplicates": key_service_pb2.FindDuplicatesRequest(**common),
    }
    for rpc, request in calls.items():
        if rpc == "FindDuplicates" and common["acting_for"].operator_id:
            continue
        error = await refusal(getattr(keys, rpc)(request))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "PROVIDER_KEY_NOT_FOUND"), rpc
    listing = key_service_pb2.ListKeysRequest(acting_for=common["acting_for"], organization_id=organization.id)
    assert (await refusal(keys.ListKeys(listing))).reason == "INVALID_ARGUMENT"
    creating = create_request(
        acting_for=common["acting_for"], scope=ORGANIZATION_SCOPE, organization_id=organization.id
    )
    assert (await refusal(keys.CreateKey(creating))).reason == "INVALID_ARGUMENT"
    validation = lease_pb2.ValidationPurpose(key_id=key_id, acting_for=common["acting_for"])
    router = await organization.vault.router()
    tested = await router.acquire(lease_pb2.LeaseItem(validation=validation))
    assert remote_error(tested.results[0].error).reason == "PROVIDER_KEY_NOT_FOUND"


async def test_a_member_manages_the_organizations_keys(organization: Organization) -> None:
    """Any member lists, reads, replaces and revokes them; none of it shows among the member's own."""
    keys = await organization.vault.keys()
    other = member(organization.id, name("owner"))
    common: dict[str, Any] = {"acting_for": other, "key_id": organization.key.key_id}
    assert (await keys.GetKey(key_service_pb2.GetKeyRequest(**common))).key == organization.key
    listing = key_service_pb2.ListKeysRequest(acting_for=other, organization_id=organization.id)
    assert [key.key_id for key in (await keys.ListKeys(listing)).keys] == [organization.key.key_id]
    own = key_service_pb2.ListKeysRequest(acting_for=other)
    assert not (await keys.ListKeys(own)).keys
    replaced = await keys.ReplaceKeySecret(
        key_service_pb2.ReplaceKeySecretRequest(**common, request_id=new_id(), actor="test", plaintext=SECRET + b"2")
    )
    assert replaced.key.key_version == 2
    await organization.share()
    shares = await keys.ListShares(key_service_pb2.ListSharesRequest(**common))
    assert [share.agent_id for share in shares.shares] == [organization.agents[0]]
    by_agent = key_service_pb2.ListKeysRequest(
        acting_for=other, organization_id=organization.id, agent_id=organization.agents[1]
    )
    assert not (await keys.ListKeys(by_agent)).keys
    await keys.RevokeKey(revoke_request(organization.key.key_id, acting_for=other))
    error = await refusal(organization.share(1))
    assert error.reason == "PROVIDER_KEY_REVOKED"


async def test_a_key_is_created_for_an_organization_or_an_owner_not_both(shared_vault: Vault) -> None:
    """Scope and organization must fit; the refusal names the field."""
    keys = await shared_vault.keys()
    mismatched: list[dict[str, Any]] = [
        {"scope": ORGANIZATION_SCOPE, "acting_for": member()},
        {"organization_id": "org-1", "acting_for": member()},
        {"scope": ORGANIZATION_SCOPE, "organization_id": "org-1", "agent_id": "agent-1", "acting_for": member()},
        {"scope": ORGANIZATION_SCOPE, "organization_id": "org 1", "acting_for": member()},
    ]
    for fields in mismatched:
        error = await refusal(keys.CreateKey(create_request(**fields)))
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


BAD_SHARES = {
    "no operation": {"operations": []},
    "an operation twice": {"operations": [CHAT, CHAT]},
    "validation": {"operations": [operation_pb2.OPERATION_KEY_VALIDATION]},
    "an unknown operation": {"operations": [99]},
    "a negative cap": {"cap": provider_key_pb2.ShareCap(month_cost_nano_usd=-1)},
    "an agent with spaces": {"agent_id": "a b"},
    "nobody": {"actor": ""},
    "a request id of another form": {"request_id": "x"},
}


@pytest.mark.parametrize("fields", BAD_SHARES.values(), ids=BAD_SHARES)
async def test_a_bad_share_is_refused(organization: Organization, fields: dict[str, Any]) -> None:
    """Typed, with what to send instead; nothing is written."""
    usual: dict[str, Any] = {"agent_id": organization.agents[0], "acting_for": organization.member}
    keys = await organization.vault.keys()
    error = await refusal(keys.ShareKey(share_request(organization.key.key_id, **(usual | fields))))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    rows = await organization.vault.sql("SELECT 1 FROM key_shares WHERE provider_key_id = $1", organization.key.key_id)
    assert not rows


async def test_what_cannot_be_shared_or_unshared_is_told(organization: Organization) -> None:
    """An agent of another account, a key of an owner, and a share that never was."""
    vault = organization.vault
    stranger, owner_id = name("agent"), name("owner")
    await vault.bind(stranger, owner_id)
    keys = await vault.keys()
    request = share_request(organization.key.key_id, stranger, acting_for=organization.member)
    assert (await refusal(keys.ShareKey(request))).reason == "AGENT_NOT_FOUND"
    own = await vault.working_key(acting_for=owner(owner_id))
    request = share_request(own.key_id, stranger, acting_for=owner(owner_id))
    assert (await refusal(keys.ShareKey(request))).reason == "INVALID_ARGUMENT"
    error = await refusal(organization.unshare(1))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SHARE_NOT_FOUND")
    assert error.metadata == {"providerKeyId": organization.key.key_id, "agentId": organization.agents[1]}


async def test_shares_are_listed_in_pages(organization: Organization) -> None:
    """In the order of the agents' ids; a token fits its own filter alone."""
    await organization.share(0)
    await organization.share(1)
    keys = await organization.vault.keys()
    listing = key_service_pb2.ListSharesRequest(
        acting_for=organization.member, key_id=organization.key.key_id, page_size=1
    )
    first = await keys.ListShares(listing)
    listing.page_token = first.next_page_token
    second = await keys.ListShares(listing)
    assert [each.shares[0].agent_id for each in (first, second)] == sorted(organization.agents)
    assert not second.next_page_token
    listing.agent_id = organization.agents[0]
    assert (await refusal(keys.ListShares(listing))).reason == "INVALID_ARGUMENT"
