"""A replica that serves keeps its say in a promotion, also while it cannot reach its root key."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from byok.keyvault.v1 import keyring_service_pb2, keyring_service_pb2_grpc
from keyvault.domain.errors import RootKeyUnavailableError
from keyvault.settings import KeyringSettings
from keyvault.usecases.hold_keyring import HoldKeyring
from services.keyvault.tests.integration.vault import Vault, new_id, refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyvault.domain.keyring import Keyring

    StartVault = Callable[..., Awaitable[Vault]]

BOUND = timedelta(seconds=1)
BRISK = KeyringSettings(heartbeat=timedelta(milliseconds=100), replica_bound=BOUND)
KEK = keyring_service_pb2.KEYRING_PURPOSE_KEK


async def _promotion_is_refused_for_longer_than_the_bound(vault: Vault) -> None:
    stub: Any = keyring_service_pb2_grpc.KeyringServiceStub(await vault.channel("operator"))
    await stub.StageKey(keyring_service_pb2.StageKeyRequest(request_id=new_id(), actor="test", purpose=KEK))
    for _ in range(12):
        await asyncio.sleep(BOUND.total_seconds() / 4)
        request = keyring_service_pb2.PromoteKeyRequest(request_id=new_id(), actor="test", purpose=KEK, version=2)
        assert (await refusal(stub.PromoteKey(request))).reason == "REPLICA_NOT_READY"


async def _away() -> None:
    raise RootKeyUnavailableError("the provider of the root key does not answer")


async def _hanging() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("trouble", [_away, _hanging])
async def test_a_replica_that_cannot_reach_its_root_key_is_waited_for(
    start_vault: StartVault, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[], Awaitable[None]]
) -> None:
    """It takes calls, and would open nothing that is wrapped by the next version."""
    refresh = HoldKeyring.refresh
    replicas: list[HoldKeyring] = []

    async def refreshed(replica: HoldKeyring) -> Keyring:
        if replica not in replicas:
            replicas.append(replica)
        if replica in replicas[1:]:
            await trouble()
        return await refresh(replica)

    vault = await start_vault(keyring=BRISK)
    await start_vault(keyring=BRISK)
    monkeypatch.setattr(HoldKeyring, "refresh", refreshed)
    while len(replicas) < 2:
        await asyncio.sleep(0.01)
    await _promotion_is_refused_for_longer_than_the_bound(vault)
