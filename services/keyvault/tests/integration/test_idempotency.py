"""A request id: the same body gets the same answer, another body is refused, also when only the secret differs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from byok.keyvault.v1 import key_service_pb2, lease_service_pb2, provider_key_pb2
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

OTHER_BODIES: dict[str, dict[str, Any]] = {
    "the secret": {"plaintext": SECRET + b"x"},
    "the label": {"label": "other"},
    "the priority": {"priority": 100},
    "the provider": {"provider": "openrouter", "plaintext": b"sk-or-v1-" + b"a" * 64},
    "the custody": {"custody": provider_key_pb2.CUSTODY_STRICT},
    "the mapping": {"mapping": [provider_key_pb2.OperationRoute(operation=6, model="claude-haiku-4-5")]},  # type: ignore[arg-type]  # CHAT
}


async def reused(call: Any) -> None:
    """Check that a call is refused for its request id."""
    error = await refusal(call)
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_creating_again_gives_the_same_key(shared_vault: Vault) -> None:
    """Byte for byte the first answer, also after the key was changed, and whatever white space is around the secret."""
    keys = await shared_vault.keys()
    request = create_request(acting_for=owner(name("owner")))
    first = await keys.CreateKey(request)
    assert await keys.CreateKey(request) == first
    await keys.RevokeKey(revoke_request(first.key.key_id, acting_for=request.acting_for))
    assert await keys.CreateKey(request) == first
    request.plaintext = b"\n" + SECRET + b"\n"
    assert (await keys.CreateKey(request)).key == first.key


@pytest.mark.parametrize("fields", OTHER_BODIES.values(), ids=OTHER_BODIES)
async def test_another_body_under_the_same_id_is_refused(shared_vault: Vault, fields: dict[str, Any]) -> None:
    """What differs does not matter; nothing of either secret is told."""
    keys = await shared_vault.keys()
    request_id, me = new_id(), owner(name("owner"))
    await keys.CreateKey(create_request(request_id=request_id, acting_for=me))
    await reused(keys.CreateKey(create_request(**({"request_id": request_id, "acting_for": me} | fields))))


async def test_a_request_id_is_its_principals_own(shared_vault: Vault) -> None:
    """Another owner may happen to use the same id."""
    keys = await shared_vault.keys()
    request_id = new_id()
    made = {
        (await keys.CreateKey(create_request(request_id=request_id, acting_for=owner(name("owner"))))).key.key_id
        for _ in range(2)
    }
    assert len(made) == 2


async def test_calls_at_the_same_time_make_one_key(shared_vault: Vault) -> None:
    """A redelivered request that races with itself gets one key."""
    keys = await shared_vault.keys()
    request = create_request(acting_for=owner(name("owner")))
    answers = await asyncio.gather(*(keys.CreateKey(request) for _ in range(8)))
    assert len({answer.key.key_id for answer in answers}) == 1
    listed = await keys.ListKeys(key_service_pb2.ListKeysRequest(acting_for=request.acting_for))
    assert len(listed.keys) == 1


async def test_updates_replay(shared_vault: Vault) -> None:
    """An update is applied once; a later one under the same id with another body is refused."""
    keys = await shared_vault.keys()
    me = owner(name("owner"))
    key = (await keys.CreateKey(create_request(acting_for=me))).key

    def update(label: str, request_id: str, etag: str = "") -> key_service_pb2.UpdateKeyRequest:
        return key_service_pb2.UpdateKeyRequest(
            request_id=request_id,
            acting_for=me,
            actor="test",
            key_id=key.key_id,
            etag=etag,
            update_mask=FieldMask(paths=["label"]),
            label=label,
        )

    request_id = new_id()
    first = await keys.UpdateKey(update("one", request_id, key.etag))
    await keys.UpdateKey(update("two", new_id()))
    assert await keys.UpdateKey(update("one", request_id, key.etag)) == first
    await reused(keys.UpdateKey(update("three", request_id, key.etag)))
    error = await refusal(keys.UpdateKey(update("four", new_id(), key.etag)))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")


async def test_replacements_replay(shared_vault: Vault) -> None:
    """A secret is replaced once; the version tells how often."""
    keys = await shared_vault.keys()
    me = owner(name("owner"))
    key = (await keys.CreateKey(create_request(acting_for=me))).key

    def replacement(secret: bytes, request_id: str) -> key_service_pb2.ReplaceKeySecretRequest:
        return key_service_pb2.ReplaceKeySecretRequest(
            request_id=request_id, acting_for=me, actor="test", key_id=key.key_id, plaintext=secret
        )

    request_id = new_id()
    first = await keys.ReplaceKeySecret(replacement(SECRET + b"2", request_id))
    assert first.key.key_version == 2
    assert await keys.ReplaceKeySecret(replacement(SECRET + b"2", request_id)) == first
    await reused(keys.ReplaceKeySecret(replacement(SECRET + b"3", request_id)))


async def test_revocations_replay(shared_vault: Vault) -> None:
    """Revoking again changes nothing, under the same id or another."""
    keys = await shared_vault.keys()
    me = owner(name("owner"))
    key = (await keys.CreateKey(create_request(acting_for=me))).key
    request = revoke_request(key.key_id, acting_for=me, reason="one")
    first = await keys.RevokeKey(request)
    assert await keys.RevokeKey(request) == first
    assert (await keys.RevokeKey(revoke_request(key.key_id, acting_for=me))).key == first.key
    request.reason = "two"
    await reused(keys.RevokeKey(request))
    error = await refusal(
        keys.ReplaceKeySecret(
            key_service_pb2.ReplaceKeySecretRequest(
                request_id=new_id(), acting_for=me, actor="test", key_id=key.key_id, plaintext=SECRET
            )
        )
    )
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PROVIDER_KEY_REVOKED")


async def test_bindings_replay(shared_vault: Vault) -> None:
    """A registration that is delivered twice binds once."""
    agent_id, me, request_id = name("agent"), name("owner"), new_id()
    first = await shared_vault.bind(agent_id, me, request_id=request_id)
    assert await shared_vault.bind(agent_id, me, request_id=request_id) == first
    await reused(shared_vault.bind(agent_id, name("owner"), request_id=request_id))


async def test_validations_replay(shared_vault: Vault) -> None:
    """The report of a test call is taken once."""
    keys, leases = await shared_vault.keys(), await shared_vault.leases()
    key = (await keys.CreateKey(create_request(acting_for=owner(name("owner"))))).key
    router = await shared_vault.router()
    request = lease_service_pb2.ReportValidationRequest(
        request_id=new_id(),
        holder=router.holder,
        lease_id=(await router.lease_for_validation(key.key_id)).lease_id,
        key_id=key.key_id,
        key_version=1,
        verdict=lease_service_pb2.VALIDATION_VERDICT_VALID,
        models=["claude-haiku-4-5"],
    )
    first = await leases.ReportValidation(request)
    assert first.key.state == provider_key_pb2.KEY_STATE_ACTIVE
    assert await leases.ReportValidation(request) == first
    request.verdict = lease_service_pb2.VALIDATION_VERDICT_REJECTED
    await reused(leases.ReportValidation(request))
