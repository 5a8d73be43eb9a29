"""Whose keys a caller sees and changes: its principal's, and nobody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from byok.keyvault.v1 import key_service_pb2, provider_key_pb2
from byok.type.v1 import account_pb2
from services.keyvault.tests.integration.vault import (
    SECRET,
    create_request,
    name,
    new_id,
    owner,
    refusal,
    revoke_request,
)

if TYPE_CHECKING:
    from services.keyvault.tests.integration.vault import Vault

pytestmark = pytest.mark.asyncio(loop_scope="session")

OPERATOR = account_pb2.Principal(operator_id="operator-1")


def calls_on(key_id: str, principal: account_pb2.Principal) -> dict[str, Any]:
    """Return one request of every RPC that names a key."""
    common: dict[str, Any] = {"acting_for": principal, "key_id": key_id}
    changing = common | {"request_id": new_id(), "actor": "test"}
    return {
        "GetKey": key_service_pb2.GetKeyRequest(**common),
        "UpdateKey": key_service_pb2.UpdateKeyRequest(**changing, update_mask=FieldMask(paths=["label"])),
        "ReplaceKeySecret": key_service_pb2.ReplaceKeySecretRequest(**changing, plaintext=SECRET),
        "RevokeKey": revoke_request(key_id, acting_for=principal),
    }


@pytest.mark.parametrize("rpc", ["GetKey", "UpdateKey", "ReplaceKeySecret", "RevokeKey"])
async def test_another_owners_key_is_as_good_as_missing(shared_vault: Vault, rpc: str) -> None:
    """Missing, another owner's and the platform's are told in the same words."""
    keys, operators = await shared_vault.keys(), await shared_vault.keys("operator")
    mine = await keys.CreateKey(create_request(acting_for=owner(name("owner"))))
    platforms = await operators.CreateKey(
        create_request(acting_for=OPERATOR, scope=provider_key_pb2.KEY_SCOPE_PLATFORM)
    )
    stranger = owner(name("owner"))
    told = set()
    for key_id in (mine.key.key_id, platforms.key.key_id, new_id()):
        error = await refusal(getattr(keys, rpc)(calls_on(key_id, stranger)[rpc]))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "PROVIDER_KEY_NOT_FOUND")
        assert error.metadata == {"providerKeyId": key_id}
        told.add(error.message)
    assert len(told) == 1


async def test_the_platforms_keys_are_an_operators(shared_vault: Vault) -> None:
    """An operator acts for the platform; the edge may not say that it does, and an operator sees no owner's keys."""
    edge, operators = await shared_vault.keys(), await shared_vault.keys("operator")
    request = create_request(acting_for=OPERATOR, scope=provider_key_pb2.KEY_SCOPE_PLATFORM)
    error = await refusal(edge.CreateKey(request))
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
    created = await operators.CreateKey(request)
    assert created.key.owned_by == account_pb2.Account(platform=True)
    listed = await operators.ListKeys(key_service_pb2.ListKeysRequest(acting_for=OPERATOR))
    assert created.key.key_id in {key.key_id for key in listed.keys}
    assert {key.scope for key in listed.keys} == {provider_key_pb2.KEY_SCOPE_PLATFORM}


@pytest.mark.parametrize("registered", [False, True])
async def test_a_key_needs_an_agent_of_its_owner(shared_vault: Vault, registered: bool) -> None:  # noqa: FBT001 (a table)
    """Neither an unregistered agent nor another owner's gets a key; the owner's own does."""
    keys = await shared_vault.keys()
    mine, agent_id = name("owner"), name("agent")
    if registered:
        await shared_vault.bind(agent_id, name("owner"))
    request = create_request(acting_for=owner(mine), scope=provider_key_pb2.KEY_SCOPE_AGENT, agent_id=agent_id)
    error = await refusal(keys.CreateKey(request))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "AGENT_NOT_FOUND")
    assert error.metadata == {"agentId": agent_id}
    own = name("agent")
    await shared_vault.bind(own, mine)
    request.agent_id, request.request_id = own, new_id()
    assert (await keys.CreateKey(request)).key.agent_id == own


async def test_an_owner_lists_their_own_keys_page_by_page(shared_vault: Vault) -> None:
    """Pages hold each key once, oldest first, and a token fits its own filter only."""
    keys = await shared_vault.keys()
    me = owner(name("owner"))
    made = [(await keys.CreateKey(create_request(acting_for=me))).key.key_id for _ in range(5)]
    await keys.CreateKey(create_request(acting_for=owner(name("owner"))))
    seen: list[str] = []
    request = key_service_pb2.ListKeysRequest(acting_for=me, page_size=2)
    while True:
        page = await keys.ListKeys(request)
        seen += [key.key_id for key in page.keys]
        if not page.next_page_token:
            break
        assert len(page.keys) == 2
        request.page_token = page.next_page_token
    assert seen == sorted(made)
    request.provider = "openai"
    assert (await refusal(keys.ListKeys(request))).reason == "INVALID_ARGUMENT"


async def test_revoked_keys_are_listed_on_demand(shared_vault: Vault) -> None:
    """A revoked key stays readable, with its reason, and out of the usual list."""
    keys = await shared_vault.keys()
    me = owner(name("owner"))
    key = (await keys.CreateKey(create_request(acting_for=me))).key
    await keys.RevokeKey(revoke_request(key.key_id, acting_for=me, reason="leaked"))
    usual = await keys.ListKeys(key_service_pb2.ListKeysRequest(acting_for=me))
    every = await keys.ListKeys(key_service_pb2.ListKeysRequest(acting_for=me, include_revoked=True))
    assert (list(usual.keys), [each.state_reason for each in every.keys]) == ([], ["leaked"])


async def test_an_account_has_room_for_so_many_keys(shared_vault: Vault) -> None:
    """The bound is told with its remedy, and revoking makes room."""
    keys = await shared_vault.keys()
    me = owner(name("owner"))
    bound = shared_vault.settings.keys.per_account_max
    made = [(await keys.CreateKey(create_request(acting_for=me))).key for _ in range(bound)]
    error = await refusal(keys.CreateKey(create_request(acting_for=me)))
    assert error.reason == "INVALID_ARGUMENT"
    assert str(bound) in error.message
    await keys.RevokeKey(revoke_request(made[0].key_id, acting_for=me))
    await keys.CreateKey(create_request(acting_for=me))


async def test_no_answer_shows_the_secret(shared_vault: Vault) -> None:
    """An owner sees the fingerprint, which a shell command checks, and the last characters."""
    keys = await shared_vault.keys()
    created = await keys.CreateKey(create_request(acting_for=owner(name("owner"))))
    assert SECRET not in created.SerializeToString()
    assert (created.key.fingerprint, created.key.secret_suffix) == ("072c89be4ba6eb93", "mnop")


async def test_an_agent_moves_only_from_where_it_is_expected(shared_vault: Vault) -> None:
    """Binding again changes nothing; a transfer names the account that it takes the agent from."""
    agent_id, me = name("agent"), name("owner")
    first = (await shared_vault.bind(agent_id, me)).binding
    assert (await shared_vault.bind(agent_id, me)).binding == first
    organization = account_pb2.Account(organization_id=name("org"))
    error = await refusal(shared_vault.bind(agent_id, me, account=organization))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "AGENT_ALREADY_BOUND")
    wrong = account_pb2.Account(organization_id=name("org"))
    error = await refusal(shared_vault.bind(agent_id, me, account=organization, expected_account=wrong))
    assert error.reason == "AGENT_ALREADY_BOUND"
    moved = await shared_vault.bind(agent_id, me, account=organization, expected_account=first.account)
    assert (moved.binding.binding_version, moved.binding.account) == (2, organization)
    assert moved.binding.authority_index > first.authority_index
