"""The key that signs checkpoints is rotated; Metering, which trusts the old one, follows without being told."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from byok.keyvault.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    keyring_service_pb2,
    keyring_service_pb2_grpc,
)
from byok.metering.v1 import account_service_pb2, account_service_pb2_grpc
from servicekit.wire import error_from_rpc
from testkit.stack.customer import Customer, Suite, new_request_id
from testkit.stack.stack import Stack, StackOptions
from testkit.waiting import eventually
from transparency.checkpoints import open_checkpoint

_PURPOSE = keyring_service_pb2.KEYRING_PURPOSE_CHECKPOINT


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[Suite]:
    """Run a vault and its witness."""
    options = StackOptions(routers=0, is_durable=False, is_kept=False)
    async with Stack(tmp_path, options=options) as stack, Suite(stack) as running:
        yield running


async def test_a_rotation_of_the_checkpoint_key_stops_nothing(suite: Suite) -> None:
    """Both keys sign from the promotion on; whoever trusts the old one learns the new one from that."""
    keyring: Any = keyring_service_pb2_grpc.KeyringServiceStub(suite.channel("keyvault", "operator"))
    audit: Any = audit_service_pb2_grpc.AuditServiceStub(suite.channel("keyvault", "operator"))
    accounts: Any = account_service_pb2_grpc.AccountServiceStub(suite.channel("metering", "operator"))

    async def witnessed() -> account_service_pb2.CustodyWitness:
        answer = await accounts.GetCustodyWitness(account_service_pb2.GetCustodyWitnessRequest())
        found: account_service_pb2.CustodyWitness = answer.witness
        return found

    def change(kind: Any, **more: Any) -> Any:
        return kind(request_id=new_request_id(), actor="operator-1", purpose=_PURPOSE, **more)

    await eventually(witnessed, lambda seen: seen.witnessed_size > 0)
    (old,) = (await audit.GetCheckpoint(audit_service_pb2.GetCheckpointRequest())).verifier_keys
    staged = (await keyring.StageKey(change(keyring_service_pb2.StageKeyRequest))).version.version

    async def is_promoted() -> bool:
        try:
            await keyring.PromoteKey(change(keyring_service_pb2.PromoteKeyRequest, version=staged))
        except grpc.aio.AioRpcError as error:
            if error_from_rpc(error).reason != "REPLICA_NOT_READY":
                raise
            return False
        return True

    async def listed() -> list[str]:
        return list((await audit.GetCheckpoint(audit_service_pb2.GetCheckpointRequest())).verifier_keys)

    await eventually(is_promoted, bool)
    _, new = await eventually(listed, lambda keys: keys[-1] != old)
    bound = (await Customer(suite).register()).binding_index
    both = await eventually(witnessed, lambda seen: seen.witnessed_size >= bound)
    for key in (old, new):
        assert open_checkpoint(both.checkpoint, [key]).size == both.witnessed_size
    assert both.state == account_service_pb2.CUSTODY_STATE_CONSISTENT
    assert await eventually(lambda: trusted_keys(suite), lambda keys: len(keys) > 1) == [old, new]


async def trusted_keys(suite: Suite) -> list[str]:
    """Return the keys that Metering trusts by now."""
    connection = await asyncpg.connect(suite.stack.metering_dsn)
    try:
        return list(await connection.fetchval("SELECT verifier_keys FROM custody_witness"))
    finally:
        await connection.close()
