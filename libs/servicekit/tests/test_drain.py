"""Stopping: no call is cut off, no stream hangs, and nothing undurable is left."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from byok.keyvault.v1 import lease_service_pb2 as pb
from servicekit.wire import error_from_rpc

Serve = Callable[..., Awaitable[Any]]


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0)


async def test_a_call_under_way_is_answered_and_new_ones_are_refused(serve: Serve) -> None:
    """Draining waits for the calls there are."""
    served = await serve()
    release = asyncio.Event()

    async def hold(_request: Any) -> pb.AcquireLeasesResponse:
        await release.wait()
        return pb.AcquireLeasesResponse(deployment="answered")

    served.servicer.behavior = hold
    held = asyncio.ensure_future((await served.stub()).AcquireLeases(pb.AcquireLeasesRequest(), timeout=10))
    await served.servicer.entered.wait()
    draining = asyncio.create_task(served.server.drain())
    await _until(lambda: not served.server.is_serving)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await (await served.stub()).AcquireLeases(pb.AcquireLeasesRequest(), timeout=2)
    assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert not draining.done()
    release.set()
    assert (await held).deployment == "answered"
    await draining


async def test_health_says_so_while_calls_are_still_taken(serve: Serve) -> None:
    """During the notice, load balancers read NOT_SERVING."""
    served = await serve(drain_notice=timedelta(seconds=30))
    channel = await served.channel()
    watch = _health(channel).Watch(health_pb2.HealthCheckRequest(service="byok.keyvault.v1.LeaseService"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    draining = asyncio.create_task(served.server.drain())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    draining.cancel()
    await asyncio.wait([draining])


async def test_streams_are_told_to_come_back(serve: Serve) -> None:
    """An open stream does not hold the drain up; its caller learns that it may come back elsewhere."""
    served = await serve()
    call = (await served.stub()).WatchAuthority()
    await call.write(pb.WatchAuthorityRequest())
    await call.read()
    await served.server.drain()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call.read()
    assert error_from_rpc(ended.value).code is grpc.StatusCode.UNAVAILABLE
    await served.servicer.stream_ended.wait()


async def test_hooks_run_after_the_last_call_and_a_faulty_one_hinders_none(serve: Serve) -> None:
    """The drain ends only when every hook has; each is awaited, in order, whatever the one before did."""
    served = await serve()
    order: list[str] = []
    durable = asyncio.Event()

    async def fail() -> None:
        order.append("faulty")
        raise RuntimeError

    async def wait_until_durable() -> None:
        order.append(f"calls {served.server.active_calls}")
        await durable.wait()
        order.append("durable")

    served.server.add_drain_hook(fail)
    served.server.add_drain_hook(wait_until_durable)
    draining = asyncio.create_task(served.server.drain())
    await _until(lambda: len(order) == 2)
    assert not draining.done()
    durable.set()
    await draining
    assert order == ["faulty", "calls 0", "durable"]


async def test_a_call_that_never_ends_does_not_stop_the_hooks(serve: Serve) -> None:
    """After its grace the drain goes on, and settlements still get their time."""
    served = await serve(drain_grace=timedelta(milliseconds=100))
    ran = asyncio.Event()

    async def hang(_request: Any) -> pb.AcquireLeasesResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async def hook() -> None:
        ran.set()

    served.servicer.behavior = hang
    served.server.add_drain_hook(hook)
    held = asyncio.ensure_future((await served.stub()).AcquireLeases(pb.AcquireLeasesRequest(), timeout=30))
    await served.servicer.entered.wait()
    await served.server.drain()
    assert ran.is_set()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await held


async def test_draining_twice_is_draining_once(serve: Serve) -> None:
    """Leaving the block after an explicit drain runs no hook again."""
    served = await serve()
    runs: list[int] = []

    async def hook() -> None:
        runs.append(1)

    served.server.add_drain_hook(hook)
    await served.server.drain()
    await served.server.drain()
    assert runs == [1]


def _health(channel: Any) -> Any:
    # Its stubs are typed for the synchronous flavour only.
    return health_pb2_grpc.HealthStub(channel)
