"""A KeyVault in this process that says on watches what a test tells it to, and a client of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from typing_extensions import override

from byok.keyvault.v1 import lease_pb2
from byok.keyvault.v1 import lease_service_pb2 as pb
from byok.keyvault.v1.lease_service_pb2_grpc import (
    LeaseServiceServicer,
    LeaseServiceStub,
    add_LeaseServiceServicer_to_server,
)
from byok.keyvault.v1.provider_key_pb2 import KeyState, OperationRoute, ProviderKey
from byok.type.v1.account_pb2 import Account as AccountMessage
from byok.type.v1.operation_pb2 import OPERATION_GUARDRAIL_EVALUATION
from catalogue.models import Operation
from router.adapters.authority import Authority
from router.adapters.authority_watch import AuthorityWatch, WatchLimits
from router.adapters.keyvault_client import KeyVaultClient, KeyVaultLimits
from router.domain.leases import LeaseQuery
from servicekit.clock import SystemClock
from servicekit.wire import status_trailers
from services.router.tests.kit import CANARY
from testkit.waiting import eventually

SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
QUERY = LeaseQuery(operation=Operation.GUARDRAIL_EVALUATION, agent_id="agent-1")
LIMITS = KeyVaultLimits(
    lease_timeout=timedelta(seconds=2),
    report_timeout=timedelta(seconds=2),
    lease_batch_max=64,
    outcome_batch_max=64,
    outcome_linger=timedelta(milliseconds=20),
    queue_max=100,
)
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
WATCH = WatchLimits(
    ping_interval=timedelta(milliseconds=20),
    silence_max=timedelta(milliseconds=400),
    reconnect_delay=timedelta(milliseconds=10),
)


class FakeKeyVault(LeaseServiceServicer):
    """A KeyVault that leases one key to everybody, unless a test tells it otherwise."""

    def __init__(self) -> None:
        self.requests: list[pb.AcquireLeasesRequest] = []
        self.outcomes: list[pb.LeaseOutcome] = []
        self.validations: list[pb.ReportValidationRequest] = []
        self.refusal: Status | None = None
        self.no_key: lease_pb2.NoUsableKey | None = None
        self.info = b"byok.lease.v1"
        self.sealed_provider = "openai"
        self.watches: list[asyncio.Queue[pb.WatchAuthorityResponse | None]] = []
        self.hellos: list[pb.WatchHello] = []
        self.acks: list[int] = []
        self.is_echoing = True
        self.echoing_max = 100
        self.deaf: set[int] = set()
        self.open_watches = 0
        self.connections = 0
        self.refusals_left = 0
        self.bound = timedelta(seconds=3)
        self.start = 5
        self.head = 1_000
        self.refused_agent = "nobody"
        self.due_states: list[KeyState.ValueType] = []

    @override
    async def AcquireLeases(self, request: pb.AcquireLeasesRequest, context: Any) -> pb.AcquireLeasesResponse:
        self.requests.append(request)
        if any(item.agent.agent_id == self.refused_agent for item in request.items):
            refused = status("INVALID_ARGUMENT", grpc.StatusCode.INVALID_ARGUMENT)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no", status_trailers(refused))
        if self.refusal is not None:
            return pb.AcquireLeasesResponse(results=[lease_pb2.LeaseResult(error=self.refusal)] * len(request.items))
        if self.no_key is not None:
            found = lease_pb2.LeaseResult(no_usable_key=self.no_key)
            return pb.AcquireLeasesResponse(results=[found] * len(request.items))
        places = range(len(request.items))
        sealed = lease_pb2.SealedLeases(leases=[self._sealed(place) for place in places])
        parts = (self.info, b"test", request.holder.encode())
        info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        recipient = X25519PublicKey.from_public_bytes(request.recipient_public_key)
        return pb.AcquireLeasesResponse(
            results=[lease_pb2.LeaseResult(lease=self._lease(place)) for place in places],
            sealed_leases=SUITE.encrypt(sealed.SerializeToString(), recipient, info),
            deployment="test",
        )

    def _sealed(self, place: int) -> lease_pb2.SealedLease:
        return lease_pb2.SealedLease(
            lease_id=f"lease-{place}",
            key_id="key-1",
            key_version=2,
            provider=self.sealed_provider,
            base_url="https://api.openai.com/v1",
            secret=CANARY.encode(),
        )

    def _lease(self, place: int) -> lease_pb2.Lease:
        owner = AccountMessage(owner_id="owner-1")
        return lease_pb2.Lease(
            lease_id=f"lease-{place}",
            key_id="key-1",
            key_version=2,
            provider="openai",
            account=owner,
            owner_id="owner-1",
            owned_by=owner,
            mapping=[OperationRoute(operation=OPERATION_GUARDRAIL_EVALUATION, model="gpt-4o", tier="flex")],
            life=Duration(seconds=60),
            authority_index=5,
            binding_index=3,
            sealed_index=place,
        )

    @override
    async def ListCandidates(self, request: pb.ListCandidatesRequest, context: Any) -> pb.ListCandidatesResponse:
        raise AssertionError("nobody asks for candidates here")

    @override
    async def ClaimKeysForValidation(
        self, request: pb.ClaimKeysForValidationRequest, context: Any
    ) -> pb.ClaimKeysForValidationResponse:
        items = [lease_pb2.LeaseItem()] * min(request.claims_max, len(self.due_states))
        leased = await self.AcquireLeases(
            pb.AcquireLeasesRequest(
                holder=request.holder, recipient_public_key=request.recipient_public_key, items=items
            ),
            context,
        )
        for result, state in zip(leased.results, self.due_states, strict=False):
            result.lease.state = state
        return pb.ClaimKeysForValidationResponse(
            results=leased.results,
            sealed_leases=leased.sealed_leases,
            deployment=leased.deployment,
            retry_after=Duration(seconds=7),
        )

    @override
    async def ReportOutcomes(self, request: pb.ReportOutcomesRequest, context: Any) -> pb.ReportOutcomesResponse:
        self.outcomes.extend(request.outcomes)
        return pb.ReportOutcomesResponse(results=[pb.LeaseOutcomeResult()] * len(request.outcomes))

    @override
    async def ReportValidation(self, request: pb.ReportValidationRequest, context: Any) -> pb.ReportValidationResponse:
        self.validations.append(request)
        return pb.ReportValidationResponse(key=ProviderKey(key_id=request.key_id))

    @override
    async def WatchAuthority(
        self, request_iterator: AsyncIterator[pb.WatchAuthorityRequest], context: Any
    ) -> AsyncIterator[pb.WatchAuthorityResponse]:
        if self.refusals_left:
            self.refusals_left -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
        queue: asyncio.Queue[pb.WatchAuthorityResponse | None] = asyncio.Queue()
        self.watches.append(queue)
        self.open_watches += 1
        reading = asyncio.create_task(self._read(request_iterator, queue, len(self.watches) - 1))
        try:
            while (message := await queue.get()) is not None:
                yield message
            if self.hellos[-1].resume_index > self.head:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "beyond the head")
        finally:
            self.open_watches -= 1
            reading.cancel()

    async def _read(
        self,
        requests: AsyncIterator[pb.WatchAuthorityRequest],
        queue: asyncio.Queue[pb.WatchAuthorityResponse | None],
        number: int,
    ) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "hello" if request.hello.resume_index > self.head:
                    self.hellos.append(request.hello)
                    queue.put_nowait(None)
                case "hello":
                    self.hellos.append(request.hello)
                    bound = Duration()
                    bound.FromTimedelta(self.bound)
                    begin = max(request.hello.resume_index, self.start)
                    ready = pb.WatchReady(authority_index=begin, partition_bound=bound)
                    queue.put_nowait(pb.WatchAuthorityResponse(ready=ready))
                case "ping" if self.is_echoing and number < self.echoing_max and number not in self.deaf:
                    echo = pb.WatchEcho(monotonic_ns=request.ping.monotonic_ns, authority_index=5)
                    queue.put_nowait(pb.WatchAuthorityResponse(echo=echo))
                case "ack":
                    self.acks.append(request.ack.authority_index)

    def say(self, message: pb.WatchAuthorityResponse | None, *, stream: int = -1) -> None:
        """Say something on a watch, or end it."""
        self.watches[stream].put_nowait(message)


class Bench:
    """A KeyVault, its client, and what the watch has heard."""

    def __init__(self, vault: FakeKeyVault, client: KeyVaultClient, target: str) -> None:
        self.vault = vault
        self.client = client
        self.target = target
        self.authority = Authority(SystemClock())
        self.watch = AuthorityWatch(self.connect, self.authority, holder="holder-1", limits=WATCH, clock=SystemClock())

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[LeaseServiceStub]:
        """Open a connection for one watch."""
        async with grpc.aio.insecure_channel(self.target, options=OWN_CONNECTION) as channel:
            self.vault.connections += 1
            yield LeaseServiceStub(channel)


@asynccontextmanager
async def opened(*, is_watching: bool = False) -> AsyncIterator[Bench]:
    """Run a KeyVault and a client of it."""
    vault = FakeKeyVault()
    server = grpc.aio.server()
    add_LeaseServiceServicer_to_server(vault, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = LeaseServiceStub(channel)
        client = KeyVaultClient(stub, holder="holder-1", limits=LIMITS, clock=SystemClock())
        bench = Bench(vault, client, f"127.0.0.1:{port}")
        watching = asyncio.create_task(bench.watch.run()) if is_watching else None
        try:
            yield bench
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.wait({watching})
            await client.aclose()
            await server.stop(None)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds that a stream will bring about."""

    async def look() -> bool:
        return holds()

    await eventually(look, bool, timeout_seconds=5)


def status(reason: str, code: grpc.StatusCode = grpc.StatusCode.NOT_FOUND, **metadata: str) -> Status:
    """Return what KeyVault says of one item."""
    made = Status(code=code.value[0], message="no")
    made.details.add().Pack(ErrorInfo(reason=reason, domain="byok.keyvault", metadata=metadata))
    return made
