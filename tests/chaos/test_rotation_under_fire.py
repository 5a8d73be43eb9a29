"""Rotation under fire: the KEK and the root key are rotated under load while everything is killed in turn.

Two KeyVaults lease at a steady load, every secret is compared with the one that was stored, and a process rewraps.
The rewrapping process and the replicas are killed with SIGKILL at random moments. In the end the old version is gone,
and every key is leased once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import signal
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import grpc
import pytest

from byok.keyvault.v1 import keyring_service_pb2 as contract
from byok.keyvault.v1 import keyring_service_pb2_grpc, lease_service_pb2_grpc
from keyvault.adapters.root_keys.file import read_root_key
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.wire import error_from_rpc
from services.keyvault.tests.integration.bulk_keys import agent_of, keyring_of, load_keys, secret_of
from services.keyvault.tests.integration.test_keyring_service import Administrator
from services.keyvault.tests.integration.vault import RouterProcess, agent_item, new_id, refusal
from testkit.figures import show
from testkit.settings import TestkitSettings
from testkit.stack.environment import target_of
from testkit.stack.stack import Stack, StackOptions
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.chaos

_ROUNDS: Final = TestkitSettings().chaos_rounds
_IS_FULL: Final = _ROUNDS > 1
_KEYS: Final = 200_000 if _IS_FULL else 3_000
_KILLS: Final = 6 * _ROUNDS if _IS_FULL else 3
_BATCH: Final = 16
_LOADERS: Final = 2
_PAUSE_SECONDS: Final = 0.02
_TRIES: Final = 60
_RETRY_SECONDS: Final = 0.25
_CLOCK: Final = SystemClock()
_LOST: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_SETTINGS: Final = {
    "BYOK_KEYVAULT_KEYRING__HEARTBEAT": "0.2",
    "BYOK_KEYVAULT_KEYRING__REPLICA_BOUND": "3",
    "BYOK_KEYVAULT_KEYRING__REWRAP_CLAIM": "1",
    "BYOK_KEYVAULT_LEASES__DISTINCT_KEYS_PER_MINUTE_MAX": "100000000",
}


@dataclass
class Tally:
    """What happened."""

    leases: int = 0
    retries: int = 0
    wrong: list[str] = field(default_factory=list)
    kills: dict[str, int] = field(default_factory=lambda: {"rewrap": 0, "replica": 0})
    passes: int = 0


@dataclass
class Fire:
    """The stack, who leases from it, and who rotates it."""

    stack: Stack
    routers: list[RouterProcess]
    admins: list[Administrator]
    channels: list[Any]
    dice: random.Random
    tally: Tally = field(default_factory=Tally)

    @property
    def admin(self) -> Administrator:
        """Return an operator at the replica that is up."""
        return self.admins[0] if self.stack.service("keyvault", 0).is_running else self.admins[1]

    async def lease(self, numbers: list[int]) -> None:
        """Lease these keys as clients do: at another replica when one is gone. Compare every secret."""
        items = [agent_item(agent_of(number)) for number in numbers]
        for attempt in range(_TRIES):
            router = self.routers[(attempt + numbers[0]) % len(self.routers)]
            try:
                answer = await router.leases.AcquireLeases(router.request(*items), timeout=10)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _LOST:
                    self.tally.wrong.append(f"{error.code().name}: {error.details()}")
                    return
                self.tally.retries += 1
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self._compare(numbers, answer, [each.secret for each in router.open(answer)])
            return
        self.tally.wrong.append("no replica answered")

    def _compare(self, numbers: list[int], answer: Any, opened: list[bytes]) -> None:
        refused = [str(each) for each in answer.results if each.WhichOneof("result") != "lease"]
        self.tally.wrong += refused
        if not refused and opened != [secret_of(number) for number in numbers]:
            self.tally.wrong.append(f"other secrets than those of {numbers}")
        self.tally.leases += len(opened)

    async def lease_on(self) -> None:
        """Lease random keys at a steady load."""
        while True:
            await self.lease(self.dice.sample(range(_KEYS), _BATCH))
            await asyncio.sleep(_PAUSE_SECONDS)

    async def rotate_once_more(self) -> None:
        """Stage and promote a version and ask for a pass, when none is wanted."""
        stands = await self.admin.stub.RewrapKeys(contract.RewrapKeysRequest())
        if stands.state in {contract.REWRAP_STATE_IDLE, contract.REWRAP_STATE_COMPLETED}:
            await self.admin.promoted()
            self.tally.passes += 1
            request = contract.RewrapKeysRequest(actor="ada", start=True, keys_per_second_max=max(_KEYS // 4, 1))
            await self.admin.stub.RewrapKeys(request)

    @contextlib.asynccontextmanager
    async def rewrapping(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run the process that rewraps."""
        with (self.stack.directory / "rewrap.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "keyvault",
                "rewrap",
                env=self.stack.service("keyvault").environment,
                cwd=self.stack.directory,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def is_working(self) -> bool:
        """Return whether the claim is a live process's, or there is nothing to do any more."""
        stands = await self.admin.stub.RewrapKeys(contract.RewrapKeysRequest())
        return bool(stands.state != contract.REWRAP_STATE_WAITING)

    async def kill_one(self, number: int) -> None:
        """Kill the rewrapping process in its work, or a replica every third time."""
        await self.rotate_once_more()
        async with self.rewrapping() as process:
            await eventually(self.is_working, bool, timeout_seconds=60)
            await asyncio.sleep(self.dice.uniform(0, 1.0))
            if number % 3 == 2:
                replica = self.dice.randrange(2)
                self.stack.kill9("keyvault", replica)
                self.tally.kills["replica"] += 1
                await asyncio.sleep(self.dice.uniform(0, 0.5))
                await self.stack.start_again("keyvault", replica)
                await self.channels[replica].channel_ready()
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                assert await process.wait() == -signal.SIGKILL
                self.tally.kills["rewrap"] += 1

    async def finish(self) -> None:
        """Let a pass come to its end."""
        await self.admin.stub.RewrapKeys(contract.RewrapKeysRequest(actor="ada", keys_per_second_max=1_000_000))
        async with self.rewrapping() as process:
            assert await process.wait() == 0, (self.stack.directory / "rewrap.log").read_text()[-2000:]
        stands = await self.admin.stub.RewrapKeys(contract.RewrapKeysRequest())
        assert (stands.state, stands.failed) == (contract.REWRAP_STATE_COMPLETED, 0)
        assert stands.completion_index > 0

    async def retire_all(self, root_key_file: Path) -> None:
        """Disable every old version, rotate the root key, and destroy them."""
        old = [version for version, state in (await self.admin.states()).items() if state == "DECRYPT_ONLY"]
        assert old
        for version in old:
            await self.admin.call("DisableKey", version)
        root = read_root_key(root_key_file).root_key_id
        await eventually(lambda: self._is_root_rotated(root), bool)
        for version in old:
            await self._destroy(version)
        assert {state for version, state in (await self.admin.states()).items() if version in old} == {"DESTROYED"}

    async def _is_root_rotated(self, root: str) -> bool:
        request = contract.RotateRootKeyRequest(request_id=new_id(), actor="ada", root_key_id=root)
        try:
            return bool((await self.admin.stub.RotateRootKey(request)).root_key_id == root)
        except grpc.aio.AioRpcError as error:
            if error_from_rpc(error).reason != "REPLICA_NOT_READY":
                raise
            return False

    async def _destroy(self, version: int) -> None:
        asked = await refusal(self.admin.call("DestroyKey", version, old_root_key_is_gone=True))
        assert asked.reason == "CONFIRMATION_REQUIRED"
        word = asked.metadata["confirmation"]
        await self.admin.call("DestroyKey", version, old_root_key_is_gone=True, confirmation=word)


async def _fire(stack: Stack, exits: contextlib.AsyncExitStack, seed: int) -> Fire:
    fire = Fire(stack, [], [], [], random.Random(seed))
    for replica in range(2):
        target = target_of([stack.service("keyvault", replica).grpc_port])
        for role in ("router", "operator"):
            channel: Any = await exits.enter_async_context(
                open_channel(target, stack.client_tls(role), server_name="localhost")
            )
            if role == "router":
                fire.routers.append(RouterProcess(None, lease_service_pb2_grpc.LeaseServiceStub(channel)))  # type: ignore[arg-type]  # no embedded vault
            else:
                fire.channels.append(channel)
                fire.admins.append(Administrator(keyring_service_pb2_grpc.KeyringServiceStub(channel)))
    return fire


async def _versions(dsn: str) -> dict[int, int]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT kek_version, count(*) AS n FROM agent_ai_key_secrets GROUP BY 1")
        return {row["kek_version"]: row["n"] for row in rows}
    finally:
        await connection.close()


@pytest.mark.timeout(1800)
async def test_every_lease_is_right_while_keys_are_rotated_and_all_is_killed(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """No lease fails for it, the pass is proved complete, the old versions are destroyed, and every key is leased."""
    next_root = tmp_path / "next-root.key"
    next_root.write_text(secrets.token_hex(32))
    next_root.chmod(0o400)
    seed = secrets.randbits(32)
    environment = _SETTINGS | {"BYOK_KEYVAULT_NEXT_ROOT_KEY__FILE": str(next_root)}
    options = StackOptions(
        keyvaults=2,
        meterings=0,
        routers=0,
        is_durable=False,
        is_kept=False,
        log_level="warning",
        environment=environment,
    )
    began = _CLOCK.monotonic()
    async with Stack(tmp_path / "stack", options=options) as stack, contextlib.AsyncExitStack() as exits:
        root = read_root_key(stack.directory / "root.key")
        minute = timedelta(minutes=1)
        ring = await keyring_of(stack.keyvault_dsn, deployment="embedded", root=root, patience=minute)
        await load_keys(stack.keyvault_dsn, ring, _KEYS)
        fire = await _fire(stack, exits, seed)
        loading = [asyncio.create_task(fire.lease_on()) for _ in range(_LOADERS)]
        number = 0
        while sum(fire.tally.kills.values()) < _KILLS:
            await fire.kill_one(number)
            number += 1
        await fire.rotate_once_more()
        await fire.finish()
        newest = max(await fire.admin.states())
        assert await _versions(stack.keyvault_dsn) == {newest: _KEYS}
        await fire.retire_all(next_root)
        for task in loading:
            task.cancel()
        assert not [
            each for each in await asyncio.gather(*loading, return_exceptions=True) if isinstance(each, OSError)
        ]
        under_load = fire.tally.leases
        for first in range(0, _KEYS, 128):
            await fire.lease(list(range(first, min(first + 128, _KEYS))))
    show(pytestconfig, _table(seed, fire.tally, under_load, _CLOCK.monotonic() - began))
    assert fire.tally.wrong == []
    assert fire.tally.leases - under_load >= _KEYS
    assert under_load > _BATCH


def _table(seed: int, tally: Tally, under_load: int, seconds: float) -> str:
    rows = {
        "seed": seed,
        "keys": _KEYS,
        "kill -9 of rewrap": tally.kills["rewrap"],
        "kill -9 of a replica": tally.kills["replica"],
        "rotations": tally.passes,
        "leases under fire": under_load,
        "leases afterwards": tally.leases - under_load,
        "calls taken to another replica": tally.retries,
        "wrong or failed leases": len(tally.wrong),
        "seconds": round(seconds),
    }
    return "\n".join(["rotation under fire", *(f"  {name:32} {value:>12,}" for name, value in rows.items())])
