"""The running suite that is measured: real processes, their ids and ports, and the agents that it works for."""

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
import psutil
from grpc.aio import AioRpcError, Channel

from bench.canned import IN_ANSWER, PROVIDER_REQUEST
from bench.companions import Upstream, grpc_of
from bench.errors import BenchError
from bench.fleet import Desk, Member, desk_of, members
from bench.jobs import Grpc
from bench.room import Room
from bench.targets.connection import open_channel
from byok.keyvault.v1.provider_key_pb2 import CUSTODY_CACHED, CUSTODY_STRICT
from testkit.errors import TestkitError
from testkit.stack.stack import Stack, StackOptions

SERVICES: Final = ("keyvault", "metering", "router")
_WARM_AGENTS: Final = 1_000
_COLD_AGENTS: Final = 100
_LIMITED_AGENTS: Final = 64


@dataclass(frozen=True)
class Suite:
    """What a part needs to know of the suite."""

    stack: Stack
    upstream: Upstream
    pids: dict[str, int]
    warm_agents: list[str]
    """Agents whose leases are kept, each with an owner and a key of its own."""
    cold_agents: list[str]
    """Agents whose keys are in strict custody: every operation takes a lease."""
    limited: list[Member]
    """Agents whose accounts have eight limits."""

    def grpc(self, service: str, *, role: str) -> Grpc:
        """Say to a driver where a service is, and as whom to call it."""
        return grpc_of(self.stack.service(service).grpc_port, self.stack.client_tls(role))

    @property
    def redis_port(self) -> int:
        """Return where Redis listens."""
        return self.stack.redis.port


@asynccontextmanager
async def open_suite(room: Room) -> AsyncIterator[Suite]:
    """Start the suite in the room's folder and make its fleet; everything ends with it.

    Raises:
        BenchError: a process did not come up, or a key was not accepted.
    """
    options = StackOptions(log_level="warning", has_fast_simulator=True)
    async with AsyncExitStack() as exits:
        try:
            stack = await exits.enter_async_context(Stack(room.folder / "stack", options=options, progress=_say))
        except TestkitError as error:
            raise BenchError(f"the suite did not start: {error}") from error
        pids = _pids(stack)
        room.groups.update({name: [pid] for name, pid in pids.items()})
        upstream = Upstream(stack.simulator, stack.ca.ca_file, pids["upstream"])
        await _prime(upstream)
        warm, cold = members("warm", _WARM_AGENTS), members("cold", _COLD_AGENTS)
        limited = members("limit", _LIMITED_AGENTS)
        _say(f"registering {len([*warm, *cold, *limited]):,} agents and storing their keys")
        try:
            async with _desk(stack) as desk:
                await desk.register([*warm, *cold, *limited])
                await desk.give_keys(warm, base_url=upstream.base_url, custody=CUSTODY_CACHED)
                await desk.give_keys(cold, base_url=upstream.base_url, custody=CUSTODY_STRICT)
                await desk.set_eight_limits(limited)
        except AioRpcError as error:
            raise BenchError(f"the fleet could not be made: {error.code().name}: {error.details()}") from error
        yield Suite(
            stack=stack,
            upstream=upstream,
            pids=pids,
            warm_agents=[each.agent_id for each in warm],
            cold_agents=[each.agent_id for each in cold],
            limited=limited,
        )


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _pids(stack: Stack) -> dict[str, int]:
    """Name the processes of the stack.

    Raises:
        BenchError: the stores are not the embedded ones, whose cost can be told.
    """
    try:
        stores = {"postgres": stack.postgres.pid, "redis": stack.redis.pid}
    except TestkitError as error:
        raise BenchError(f"a bench meters the stores too, so it takes the embedded ones: {error}") from error
    simulator = next(child.pid for child in psutil.Process().children() if "testkit.simulator" in child.cmdline())
    return {**stores, "upstream": simulator, **{name: stack.service(name).pid for name in SERVICES}}


async def _prime(upstream: Upstream) -> None:
    """Call the canned provider once: it keeps its first answer of each kind, and a key's test call asks for less."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"http://127.0.0.1:{upstream.addresses.http_port}/openai/v1/chat/completions", data=PROVIDER_REQUEST
        ) as answer,
    ):
        if answer.status != 200 or IN_ANSWER not in await answer.text():
            raise BenchError(f"the canned provider answers {answer.status} to the bench's request")


@asynccontextmanager
async def _desk(stack: Stack) -> AsyncIterator[Desk]:
    async with AsyncExitStack() as channels:

        async def channel(service: str) -> Channel:
            server = grpc_of(stack.service(service).grpc_port, stack.client_tls("edge"))
            return await channels.enter_async_context(open_channel(server))

        yield desk_of(
            keyvault=await channel("keyvault"), metering=await channel("metering"), router=await channel("router")
        )
