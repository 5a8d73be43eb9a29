"""A whole service in few lines, run as a process of its own by test_process.py."""

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from typing import Any

import structlog
from pydantic_settings import SettingsConfigDict
from typing_extensions import override

from byok.keyvault.v1 import lease_service_pb2 as pb
from byok.keyvault.v1 import lease_service_pb2_grpc as rpc
from servicekit.admin import AdminServer
from servicekit.identity import AccessPolicy
from servicekit.metrics import Metrics
from servicekit.process import announce_ready, run
from servicekit.server import GrpcServer
from servicekit.settings import ServerSettings, ServiceSettings, load
from servicekit.wire import ErrorTable

SERVICE = "byok.keyvault.v1.LeaseService"
POLICY = f"""
[roles]
router = ["spiffe://byok.local/ns/*/sa/router"]
[allow]
"{SERVICE}/AcquireLeases" = ["router"]
"""


class SampleSettings(ServiceSettings):
    """What this sample can be told."""

    model_config = SettingsConfigDict(env_prefix="BYOK_SAMPLE_")
    server: ServerSettings


class Leases(rpc.LeaseServiceServicer):
    """Does what the request's holder says."""

    @override
    async def AcquireLeases(self, request: Any, context: Any) -> pb.AcquireLeasesResponse:
        if request.holder == "panic":
            raise RuntimeError("sk-canary-0123456789abcdef")
        if request.holder == "core":
            os.write(2, b"W0000 00:00:00 1 core.cc:1] a line of the core with sk-canary-0123456789abcdef\n")
        return pb.AcquireLeasesResponse(deployment="sample")


async def serve(settings: SampleSettings, metrics: Metrics, stop: asyncio.Event) -> None:
    """Serve until stopped."""

    async def settle() -> None:
        structlog.get_logger().info("sample.settled")

    policy = AccessPolicy.load(POLICY, services=[pb.DESCRIPTOR.services_by_name["LeaseService"]])
    leases = Leases()  # type: ignore[abstract]  # the other calls are never let through
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            GrpcServer(
                settings.server,
                policy=policy,
                errors=ErrorTable("byok.sample", {}),
                metrics=metrics,
                services=[(rpc.add_LeaseServiceServicer_to_server, leases, SERVICE)],
                drain_hooks=[settle],
            )
        )
        readiness = lambda: {"serving": server.is_serving}  # noqa: E731 (a sample)
        admin = await stack.enter_async_context(
            AdminServer(settings.admin, readiness=readiness, registry=metrics.registry)
        )
        announce_ready(grpc_port=server.port, admin_port=admin.port)
        await stop.wait()


if __name__ == "__main__":
    invocation = load(SampleSettings, sys.argv[1:])
    counted = Metrics("sample")
    run(
        "sample",
        lambda stop: serve(invocation.settings, counted, stop),
        telemetry=invocation.settings.telemetry,
        metrics=counted,
    )
