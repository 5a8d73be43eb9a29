"""After a breach: which keys were exposed, and what their owners have done since."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest

from byok.keyvault.v1 import (
    exposure_service_pb2,
    exposure_service_pb2_grpc,
    key_service_pb2,
    lease_service_pb2_grpc,
)
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from services.keyvault.tests.integration.vault import (
    SECRET,
    RouterProcess,
    Vault,
    agent_item,
    create_request,
    name,
    new_id,
    owner,
    refusal,
    revoke_request,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from byok.keyvault.v1 import provider_key_pb2

NONE = exposure_service_pb2.EXPOSURE_REMEDY_NONE
REPLACED = exposure_service_pb2.EXPOSURE_REMEDY_REPLACED
REVOKED = exposure_service_pb2.EXPOSURE_REMEDY_REVOKED


def stamp(time: datetime) -> Timestamp:
    """Return a time as a message."""
    message = Timestamp()
    message.FromDatetime(time)
    return message


async def exposed(vault: Vault, start: datetime, end: datetime, caller: str = "") -> dict[str, Any]:
    """Return the exposed keys by id."""
    stub: Any = exposure_service_pb2_grpc.ExposureServiceStub(await vault.channel("operator"))
    request = exposure_service_pb2.ListExposedKeysRequest(start_time=stamp(start), end_time=stamp(end), caller=caller)
    return {key.key.key_id: key async for answer in stub.ListExposedKeys(request) for key in answer.keys}


async def new_key(vault: Vault) -> tuple[str, str, provider_key_pb2.ProviderKey]:
    """Return a new owner, their agent and their working key."""
    owner_id, agent_id = name("owner"), name("agent")
    await vault.bind(agent_id, owner_id)
    key = await vault.working_key(acting_for=owner(owner_id))
    return owner_id, agent_id, key


@pytest.fixture
async def thief(vault: Vault) -> AsyncIterator[tuple[str, RouterProcess]]:
    """Return a Router with a certificate of its own, and the name that the log has for it."""
    caller = f"spiffe://byok.local/ns/{name('ns')}/sa/router"
    tls = vault.ca.issue("router", uri=caller)
    async with open_channel(f"localhost:{vault.port}", tls, server_name="localhost") as channel:
        yield caller, RouterProcess(vault, lease_service_pb2_grpc.LeaseServiceStub(channel))


async def test_what_a_stolen_router_leased_is_found_and_nothing_else(
    vault: Vault, thief: tuple[str, RouterProcess]
) -> None:
    """Keys that only others leased are not alarmed about; leases are counted."""
    caller, router = thief
    start = SystemClock().now()
    _, agent_id, stolen = await new_key(vault)
    _, other_agent, other = await new_key(vault)
    for _ in range(3):
        await router.acquire(agent_item(agent_id))
    await (await vault.router()).acquire(agent_item(other_agent))
    found = await exposed(vault, start, SystemClock().now(), caller)
    assert set(found) == {stolen.key_id}
    assert (found[stolen.key_id].leases, found[stolen.key_id].remedy) == (3, NONE)
    assert other.key_id in await exposed(vault, start, SystemClock().now())


async def test_who_has_rotated_is_told_from_who_has_not(vault: Vault) -> None:
    """Replaced and revoked after the end are remedies; what was replaced during the breach is exposed as it is."""
    start = SystemClock().now()
    made = [await new_key(vault) for _ in range(4)]
    keys = await vault.keys()

    def replacement(owner_id: str, key_id: str) -> key_service_pb2.ReplaceKeySecretRequest:
        return key_service_pb2.ReplaceKeySecretRequest(
            request_id=new_id(), acting_for=owner(owner_id), actor="test", key_id=key_id, plaintext=SECRET + b"new"
        )

    await keys.ReplaceKeySecret(replacement(made[3][0], made[3][2].key_id))
    end = SystemClock().now()
    await keys.ReplaceKeySecret(replacement(made[0][0], made[0][2].key_id))
    await keys.RevokeKey(revoke_request(made[1][2].key_id, acting_for=owner(made[1][0])))
    late = await keys.CreateKey(create_request(acting_for=owner(name("owner"))))
    found = await exposed(vault, start, end)
    remedies = [found[key.key_id].remedy for _, _, key in made]
    assert remedies == [REPLACED, REVOKED, NONE, NONE]
    assert late.key.key_id not in found


async def test_what_was_revoked_before_the_breach_is_not_exposed(vault: Vault) -> None:
    """Nothing of its secret was stored any more."""
    owner_id, _, key = await new_key(vault)
    await (await vault.keys()).RevokeKey(revoke_request(key.key_id, acting_for=owner(owner_id)))
    start = SystemClock().now()
    await new_key(vault)
    assert key.key_id not in await exposed(vault, start, SystemClock().now())


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (timedelta(hours=-1), timedelta(hours=1), "IN_THE_FUTURE"),
        (timedelta(hours=-1), timedelta(hours=-2), "NOT_BEFORE_END"),
    ],
)
async def test_an_interval_that_does_not_fit_is_refused(
    vault: Vault, start: timedelta, end: timedelta, reason: str
) -> None:
    """With the field named."""
    now = SystemClock().now()
    error = await refusal(exposed(vault, now + start, now + end))
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    bad = BadRequest()
    assert any(detail.Unpack(bad) for detail in error.details)
    assert [each.reason for each in bad.field_violations] == [reason]  # type: ignore[attr-defined]  # newer than the stubs
