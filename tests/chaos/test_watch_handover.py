"""Contact with KeyVault does not lapse when a watch must move: connections age, replicas restart, one stands still.

A Router out of contact may use nothing that it cached, so every lapse is a refused call; here there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Final

import aiohttp
import grpc
import orjson
import pytest
import pytest_asyncio

from byok.keyvault.v1 import key_service_pb2, key_service_pb2_grpc
from byok.type.v1 import account_pb2
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from testkit.figures import show
from testkit.settings import TestkitSettings
from testkit.stack.customer import Customer, Suite, new_request_id
from testkit.stack.environment import target_of
from testkit.stack.load import Load, Outcome
from testkit.stack.stack import Stack, StackOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from testkit.stack.services import ServiceProcess

pytestmark = pytest.mark.chaos

_CLOCK: Final = SystemClock()
_ROUNDS: Final = TestkitSettings().chaos_rounds
_AGE_SECONDS: Final = 2.0
_PARTITION_BOUND: Final = 3.0
_SLACK: Final = 1.0
_WRITERS: Final = 32
_BUSY_SECONDS: Final = 5.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Run two KeyVaults whose connections live for two seconds, and one Router."""
    options = StackOptions(
        keyvaults=2,
        is_durable=False,
        is_kept=False,
        environment={"BYOK_KEYVAULT_SERVER__CONNECTION_AGE_MAX": str(_AGE_SECONDS)},
    )
    async with Stack(tmp_path_factory.mktemp("stack"), options=options) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def suite(stack: Stack) -> AsyncIterator[Suite]:
    """Return the stubs of this file's stack."""
    async with Suite(stack) as suite:
        yield suite


class Contact:
    """Whether the Router says that it is in contact, asked all the time."""

    def __init__(self, stack: Stack) -> None:
        self._url = f"http://127.0.0.1:{stack.service('router').admin_port}/readyz"
        self.answers: Counter[bool] = Counter()

    async def look(self) -> None:
        """Ask until cancelled."""
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(self._url) as answer:
                    self.answers[(await answer.json())["checks"]["keyvault_watch"]] += 1
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def under_load(stack: Stack, suite: Suite) -> AsyncIterator[Load]:
    """Have calls made while the context lasts; all are answered, and there is contact all the time."""
    customer = Customer(suite)
    await customer.set_up("openai")
    contact = Contact(stack)
    load = Load([customer], workers=4)
    load.start()
    await load.wait_for(10)
    looking = asyncio.create_task(contact.look())
    try:
        yield load
    finally:
        outcomes = await load.stop()
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
    assert refusals(outcomes) == {}
    assert contact.answers[True] > 50
    assert contact.answers[False] == 0
    assert wanted_contact(stack) == []


def refusals(outcomes: Sequence[Outcome]) -> Counter[str]:
    """Return why calls were refused."""
    return Counter(outcome.error.reason for outcome in outcomes if outcome.error is not None)


def wanted_contact(stack: Stack) -> list[dict[str, object]]:
    """Return what the Router logged of leases that it could not use for want of contact."""
    lines = [orjson.loads(line) for line in stack.service("router").log_file.read_bytes().splitlines()]
    return [line for line in lines if line["event"] == "lease.no_contact" or line.get("rule") == "contact"]


def watches_ended(stack: Stack) -> list[object]:
    """Return why watches ended before they had been replaced."""
    lines = [orjson.loads(line) for line in stack.service("router").log_file.read_bytes().splitlines()]
    return [line["cause"] for line in lines if line["event"] == "authority.watch_ended"]


@pytest.mark.timeout(300)
@pytest.mark.asyncio(loop_scope="module")
async def test_contact_outlives_connections(stack: Stack, suite: Suite) -> None:
    """Connections end every two seconds: each watch is replaced before its own does, and none breaks."""
    ended = watches_ended(stack)
    async with under_load(stack, suite):
        await asyncio.sleep(3 * _ROUNDS * _AGE_SECONDS)
    assert watches_ended(stack) == ended


@pytest.mark.timeout(300)
@pytest.mark.asyncio(loop_scope="module")
async def test_contact_outlives_a_rolling_restart(stack: Stack, suite: Suite) -> None:
    """Each replica in turn drains and comes back; its watchers have left before it goes."""
    ended = watches_ended(stack)
    async with under_load(stack, suite) as load:
        for _ in range(_ROUNDS):
            for replica in range(2):
                await asyncio.to_thread(stack.stop, "keyvault", replica)
                await load.wait_for(20)
                await stack.start_again("keyvault", replica)
                await load.wait_for(20)
    assert watches_ended(stack) == ended


@pytest.mark.timeout(300)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_replica_that_stands_still_freezes_nobody(stack: Stack, suite: Suite) -> None:
    """Contact moves to the other replica before the bound has passed, and revocations there take no longer than it."""
    for replica in range(2):
        customer = Customer(suite)
        key = await customer.set_up("openai")
        stopped, serving = stack.service("keyvault", replica), stack.service("keyvault", 1 - replica)
        async with under_load(stack, suite):
            os.kill(stopped.pid, signal.SIGSTOP)
            try:
                started = _CLOCK.monotonic()
                await revoke_at(stack, serving, customer, key.key_id)
                assert _CLOCK.monotonic() - started < _PARTITION_BOUND + _SLACK
                await asyncio.sleep(_PARTITION_BOUND + _SLACK)
            finally:
                os.kill(stopped.pid, signal.SIGCONT)


@pytest.mark.timeout(300)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_busy_log_starves_nobody(stack: Stack, suite: Suite, pytestconfig: pytest.Config) -> None:
    """Authority changes as fast as this machine lets it: something is always under way, and contact holds."""
    made = 0

    async def bind(channel: grpc.aio.Channel) -> None:
        nonlocal made
        keys = key_service_pb2_grpc.KeyServiceStub(channel)
        while True:
            name = uuid.uuid4().hex
            request = key_service_pb2.BindAgentRequest(
                request_id=new_request_id(),
                actor="test",
                agent_id=f"agent-{name}",
                owner_id=f"owner-{name}",
                account=account_pb2.Account(owner_id=f"owner-{name}"),
            )
            # A connection that is too old may end under a call; that is not what this is about.
            with contextlib.suppress(grpc.aio.AioRpcError):
                await keys.BindAgent(request)
                made += 1

    target, tls = stack.target("keyvault"), stack.client_tls("metering")
    async with open_channel(target, tls, server_name="localhost") as channel, under_load(stack, suite):
        binding = [asyncio.create_task(bind(channel)) for _ in range(_WRITERS)]
        started = _CLOCK.monotonic()
        await asyncio.sleep(_BUSY_SECONDS * _ROUNDS)
        rate = made / (_CLOCK.monotonic() - started)
        for each in binding:
            each.cancel()
    show(pytestconfig, f"authority changes while contact held: {rate:.0f} a second")
    assert made > 100


async def revoke_at(stack: Stack, replica: ServiceProcess, customer: Customer, key_id: str) -> None:
    """Revoke a key at one replica."""
    request = key_service_pb2.RevokeKeyRequest(
        request_id=new_request_id(), acting_for=customer.principal, actor="test", key_id=key_id
    )
    target = target_of([replica.grpc_port])
    async with open_channel(target, stack.client_tls("edge"), server_name="localhost") as channel:
        await key_service_pb2_grpc.KeyServiceStub(channel).RevokeKey(request)
