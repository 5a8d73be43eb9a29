"""A server of real sockets and certificates, with a servicer whose behaviour a test chooses."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from typing_extensions import override

from byok.keyvault.v1 import lease_service_pb2 as pb
from byok.keyvault.v1 import lease_service_pb2_grpc as rpc
from servicekit.channels import RotatingChannel, open_channel
from servicekit.identity import AccessPolicy, TlsFiles, current_caller
from servicekit.metrics import Metrics
from servicekit.refusals import Refusal
from servicekit.server import GrpcServer
from servicekit.settings import ServerSettings, TlsSettings
from servicekit.wire import ErrorTable
from testkit.pki import ThrowawayCa

SERVICE = "byok.keyvault.v1.LeaseService"
POLICY = f"""
[roles]
router = ["spiffe://byok.local/ns/*/sa/router"]
metering = ["spiffe://byok.local/ns/*/sa/metering"]

[allow]
"{SERVICE}/AcquireLeases" = ["router"]
"{SERVICE}/WatchAuthority" = ["router"]
"{SERVICE}/ReportOutcomes" = []
"""

Behavior = Callable[[Any], Awaitable[pb.AcquireLeasesResponse]]


class Leases(rpc.LeaseServiceServicer):
    """Answers with the caller's identity, or does what the test put into `behavior`."""

    def __init__(self) -> None:
        self.behavior: Behavior | None = None
        self.entered = asyncio.Event()
        self.stream_ended = asyncio.Event()

    @override
    async def AcquireLeases(self, request: Any, context: Any) -> pb.AcquireLeasesResponse:
        self.entered.set()
        if self.behavior is not None:
            return await self.behavior(request)
        return pb.AcquireLeasesResponse(deployment=current_caller().uri)

    @override
    async def WatchAuthority(self, requests: Any, context: Any) -> Any:
        try:
            async for _request in requests:
                yield pb.WatchAuthorityResponse()
        finally:
            self.stream_ended.set()


@dataclass
class Served:
    """A running server, what it serves, and ways to reach it."""

    server: GrpcServer
    servicer: Leases
    metrics: Metrics
    files: TlsFiles
    ca: ThrowawayCa
    stack: AsyncExitStack
    refusals: list[Refusal] = field(default_factory=list)

    @property
    def target(self) -> str:
        return f"localhost:{self.server.port}"

    async def channel(self, files: TlsFiles | None = None) -> RotatingChannel:
        return await self.stack.enter_async_context(open_channel(self.target, files or self.ca.issue("router")))

    async def stub(self, files: TlsFiles | None = None) -> rpc.LeaseServiceStub:
        return rpc.LeaseServiceStub(await self.channel(files))


ServeFactory = Callable[..., Awaitable[Served]]


def lease_service() -> ServiceDescriptor:
    """Return the descriptor of the service that is served."""
    return pb.DESCRIPTOR.services_by_name["LeaseService"]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[ServeFactory]:
    """Return a function that starts a server; `policy` and any `ServerSettings` field may be given."""
    async with AsyncExitStack() as stack:

        async def start(
            *, policy: str = POLICY, errors: ErrorTable | None = None, sizes: dict[str, int] | None = None, **given: Any
        ) -> Served:
            ca = ThrowawayCa(tmp_path / "ca")
            files = ca.issue("keyvault")
            tls = TlsSettings(certificate_file=files.certificate, private_key_file=files.private_key, ca_file=files.ca)
            given.setdefault("drain_grace", timedelta(seconds=5))
            servicer = Leases()  # type: ignore[abstract]  # the other calls are never let through
            metrics, refusals = Metrics("keyvault"), list[Refusal]()
            server = GrpcServer(
                ServerSettings(tls=tls, **given),
                policy=AccessPolicy.load(policy, services=[lease_service()]),
                errors=errors or ErrorTable("byok.keyvault", {}),
                metrics=metrics,
                services=[(rpc.add_LeaseServiceServicer_to_server, servicer, SERVICE)],
                on_refusal=refusals.append,
                message_bytes_max=sizes,
            )
            await stack.enter_async_context(server)
            return Served(server, servicer, metrics, files, ca, stack, refusals)

        yield start
