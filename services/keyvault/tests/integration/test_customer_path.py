"""The main job of KeyVault over real gRPC: bind, create, validate, lease, revoke."""

from __future__ import annotations

from typing import TYPE_CHECKING

from byok.keyvault.v1 import lease_pb2, provider_key_pb2
from services.keyvault.tests.integration.vault import (
    SECRET,
    agent_item,
    create_request,
    revoke_request,
    validation_item,
)

if TYPE_CHECKING:
    from services.keyvault.tests.integration.vault import Vault


async def test_a_key_is_bound_created_validated_leased_and_revoked(vault: Vault) -> None:
    """An owner's key goes all the way, and its secret is seen by the leasing process alone."""
    await vault.bind()
    keys, router = await vault.keys(), await vault.router()
    created = await keys.CreateKey(create_request(plaintext=b" " + SECRET + b"\n"))
    assert [each.field for each in created.adjustments] == ["plaintext"]
    assert created.key.state == provider_key_pb2.KEY_STATE_PENDING_VALIDATION
    pending = await router.acquire(agent_item())
    assert pending.results[0].no_usable_key.cause == lease_pb2.NO_KEY_CAUSE_NO_USABLE_KEY
    tested = await router.acquire(validation_item(created.key.key_id))
    assert router.open(tested)[0].secret == SECRET
    await router.validate(created.key.key_id)
    leased = await router.acquire(agent_item(), agent_item())
    assert [each.WhichOneof("result") for each in leased.results] == ["lease", "lease"]
    assert {each.secret for each in router.open(leased)} == {SECRET}
    assert router.open(leased)[0].base_url == "https://api.anthropic.com"
    revoked = await keys.RevokeKey(revoke_request(created.key.key_id, reason="leaked"))
    assert revoked.key.state == provider_key_pb2.KEY_STATE_REVOKED
    after = await router.acquire(agent_item())
    assert after.results[0].no_usable_key.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY
