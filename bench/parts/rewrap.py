"""How fast a process of its own rewraps, and what it costs those who lease meanwhile.

On the suite's own database, beside its fleet: keys are loaded, and each pass goes to a version promoted for it.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from statistics import median
from typing import Any, Final

from bench.errors import BenchError
from bench.jobs import LeasesJob
from bench.room import Room
from bench.rows import Row, row_of
from bench.suite import Suite
from bench.targets.connection import open_channel
from byok.keyvault.v1 import keyring_service_pb2 as contract
from byok.keyvault.v1 import keyring_service_pb2_grpc
from keyvault.adapters.root_keys.file import read_root_key
from services.keyvault.tests.integration.bulk_keys import keyring_of, load_keys
from services.keyvault.tests.integration.test_keyring_service import Administrator
from testkit.waiting import eventually

_KEYS: Final = 200_000
_KEYS_QUICK: Final = 30_000
_QUICK_SECONDS: Final = 5
_BATCH: Final = 16
_IN_FLIGHT: Final = 2


async def measure_rewrap(room: Room, suite: Suite) -> list[Row]:
    """Rewrap once alone, then once for every repetition under leases, with idle stretches in between."""
    count = _KEYS if room.pace.seconds > _QUICK_SECONDS else _KEYS_QUICK
    root = read_root_key(suite.stack.directory / "root.key")
    patience = timedelta(minutes=1)
    ring = await keyring_of(suite.stack.keyvault_dsn, deployment="embedded", root=root, patience=patience)
    await load_keys(suite.stack.keyvault_dsn, ring, count)
    leases = await room.driver(LeasesJob(suite.grpc("keyvault", role="router"), suite.warm_agents, _BATCH))
    async with _operator(suite) as admin:
        alone = [await _pass(suite, admin) for _ in range(room.pace.repetitions)]
        idle, busy = [], []
        await leases.run(in_flight=_IN_FLIGHT, seconds=room.pace.warm_seconds)
        for _ in range(room.pace.repetitions):
            idle.append((await leases.run(in_flight=_IN_FLIGHT, seconds=room.pace.warm_seconds)).p99_ms)
            passing = asyncio.create_task(_pass(suite, admin))
            await _until(admin, contract.REWRAP_STATE_RUNNING)
            busy.append((await leases.run(in_flight=_IN_FLIGHT, seconds=room.pace.warm_seconds)).p99_ms)
            await passing
    return [
        row_of(
            "keyvault.rewrap_keys_per_s",
            alone,
            unit="key/s",
            note=f"{count:,} keys, one process; unwrapped, wrapped, unwrapped again, stored durably; nothing else runs",
        ),
        row_of(
            "keyvault.rewrap_lease_p99_ratio",
            [during / before for during, before in zip(busy, idle, strict=True)],
            unit="ratio",
            note=f"p99 of a batch of {_BATCH} leases: {median(busy):.1f} ms during a pass, {median(idle):.1f} ms "
            "before it, in turn",
        ),
    ]


@asynccontextmanager
async def _operator(suite: Suite) -> AsyncIterator[Administrator]:
    channel: Any = open_channel(suite.grpc("keyvault", role="operator"))
    try:
        yield Administrator(keyring_service_pb2_grpc.KeyringServiceStub(channel))
    finally:
        await channel.close()


async def _stands(admin: Administrator) -> contract.RewrapKeysResponse:
    answer: contract.RewrapKeysResponse = await admin.stub.RewrapKeys(contract.RewrapKeysRequest())
    return answer


async def _until(admin: Administrator, state: int) -> None:
    await eventually(lambda: _stands(admin), lambda stands: stands.state in {state, contract.REWRAP_STATE_COMPLETED})


async def _pass(suite: Suite, admin: Administrator) -> float:
    """Promote a version, rewrap everything, and return keys a second from the first to the last batch.

    Raises:
        BenchError: the process failed.
    """
    await admin.promoted()
    asked = await admin.stub.RewrapKeys(contract.RewrapKeysRequest(actor="bench", start=True))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "keyvault",
        "rewrap",
        env=suite.stack.service("keyvault").environment,
        cwd=suite.stack.directory,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await _until(admin, contract.REWRAP_STATE_RUNNING)
        began = time.perf_counter()
        status = await process.wait()
        seconds = time.perf_counter() - began
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status != 0:
        raise BenchError("the process that rewraps failed; see the log of the suite's KeyVault")
    return float(asked.remaining / seconds)
