"""One replica that is stopped in the middle of its work freezes none of the others.

It is stopped while it appends to the audit log as fast as it can, at moments that nobody chose, and another replica
must go on appending at once. What it would cost to hold the lock of the log from a client is shown by one that does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from typing import TYPE_CHECKING, Final

import grpc
import pytest
import pytest_asyncio

from byok.keyvault.v1 import key_service_pb2, key_service_pb2_grpc
from byok.type.v1 import account_pb2
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from testkit.settings import TestkitSettings
from testkit.stack.customer import new_request_id
from testkit.stack.environment import target_of
from testkit.stack.stack import Stack, StackOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from testkit.stack.services import ServiceProcess

pytestmark = pytest.mark.chaos

_CLOCK: Final = SystemClock()
_STOPS: Final = 10 * TestkitSettings().chaos_rounds
_WRITERS: Final = 16
_AT_ONCE_SECONDS: Final = 2.0
"""Much longer than an append takes on a busy machine, and much shorter than a statement may."""
# Locks the head of the log, says so, and would write its entry in the next statement.
_HOLDER: Final = """
import asyncio, sys, asyncpg

async def hold():
    connection = await asyncpg.connect(sys.argv[1])
    async with connection.transaction():
        await connection.fetchval("SELECT last_index FROM audit_head FOR UPDATE")
        print("held", flush=True)
        await asyncio.sleep(0.2)

asyncio.run(hold())
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Run two KeyVaults, alone."""
    options = StackOptions(keyvaults=2, meterings=0, routers=0, is_durable=False, is_kept=False, log_level="warning")
    async with Stack(tmp_path_factory.mktemp("stack"), options=options) as running:
        yield running


@contextlib.asynccontextmanager
async def writing(stack: Stack, replica: ServiceProcess) -> AsyncIterator[key_service_pb2_grpc.KeyServiceStub]:
    """Return what binds agents at one replica."""
    tls = stack.client_tls("metering")
    async with open_channel(target_of([replica.grpc_port]), tls, server_name="localhost") as channel:
        yield key_service_pb2_grpc.KeyServiceStub(channel)


async def append(keys: key_service_pb2_grpc.KeyServiceStub) -> float:
    """Append one entry, and return how long it took."""
    started = _CLOCK.monotonic()
    name = new_request_id()
    request = key_service_pb2.BindAgentRequest(
        request_id=new_request_id(),
        actor="test",
        agent_id=f"agent-{name}",
        owner_id=f"owner-{name}",
        account=account_pb2.Account(owner_id=f"owner-{name}"),
    )
    await keys.BindAgent(request)
    return _CLOCK.monotonic() - started


async def append_on(keys: key_service_pb2_grpc.KeyServiceStub) -> None:
    """Append for as long as this is not cancelled, whatever becomes of it."""
    while True:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await append(keys)


@pytest.mark.timeout(300)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_replica_stopped_at_any_moment_freezes_no_other(stack: Stack) -> None:
    """The lock on the head lives as long as one statement inside of Postgres, which nobody stops with the client."""
    busy, other = stack.service("keyvault", 0), stack.service("keyvault", 1)
    moments = random.Random(8)
    took = []
    async with writing(stack, busy) as its_keys, writing(stack, other) as keys:
        writers = [asyncio.create_task(append_on(its_keys)) for _ in range(_WRITERS)]
        for _ in range(_STOPS):
            await asyncio.sleep(moments.uniform(0.05, 0.15))
            os.kill(busy.pid, signal.SIGSTOP)
            try:
                took.append(await asyncio.wait_for(append(keys), _AT_ONCE_SECONDS))
            finally:
                os.kill(busy.pid, signal.SIGCONT)
        for writer in writers:
            writer.cancel()
    assert max(took) < _AT_ONCE_SECONDS


@pytest.mark.timeout(300)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_client_that_held_the_lock_would_freeze_all(stack: Stack) -> None:
    """Stopped between two statements of a transaction, it keeps every replica from appending until it goes on."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLDER, stack.keyvault_dsn, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    assert await asyncio.wait_for(holder.stdout.readline(), 30) == b"held\n"
    holder.send_signal(signal.SIGSTOP)
    async with writing(stack, stack.service("keyvault", 1)) as keys:
        appending = asyncio.create_task(append(keys))
        try:
            _, pending = await asyncio.wait({appending}, timeout=_AT_ONCE_SECONDS)
            assert pending == {appending}
        finally:
            holder.send_signal(signal.SIGCONT)
            await holder.wait()
        await asyncio.wait_for(appending, 30)
