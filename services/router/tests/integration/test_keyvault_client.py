"""The client of KeyVault over real gRPC: sealed batches, refusals, outcomes, and the watch on authority."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import pytest
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
from byok.keyvault.v1.provider_key_pb2 import OperationRoute, ProviderKey
from byok.type.v1.account_pb2 import Account as AccountMessage
from byok.type.v1.operation_pb2 import OPERATION_GUARDRAIL_EVALUATION
from catalogue.models import Operation
from router.adapters.authority import Authority
from router.adapters.authority_watch import AuthorityWatch, WatchLimits
from router.adapters.keyvault_client import KeyVaultClient, KeyVaultLimits
from router.domain.leases import Account, AccountKind, Lease, LeaseQuery, NoKey, Outcome, OutcomeKind, PlatformCause
from router.domain.operations import Principal
from router.domain.refusals import (
    AgentNotFoundError,
    KeyCorruptError,
    LeaseEndedError,
    ProviderKeyRevokedError,
    RouterError,
    RouterOverloadedError,
    SuiteUnavailableError,
)
from router.ports import KeyVerdict, ValidationReport
from servicekit.clock import SystemClock
from servicekit.errors import InvalidArgumentError
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
        self.head = 1_000
        self.refused_agent = "nobody"

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
        queue: asyncio.Queue[pb.WatchAuthorityResponse | None] = asyncio.Queue()
        self.watches.append(queue)
        reading = asyncio.create_task(self._read(request_iterator, queue))
        try:
            while (message := await queue.get()) is not None:
                yield message
            if self.hellos[-1].resume_index > self.head:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "beyond the head")
        finally:
            reading.cancel()

    async def _read(
        self,
        requests: AsyncIterator[pb.WatchAuthorityRequest],
        queue: asyncio.Queue[pb.WatchAuthorityResponse | None],
    ) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "hello" if request.hello.resume_index > self.head:
                    self.hellos.append(request.hello)
                    queue.put_nowait(None)
                case "hello":
                    self.hellos.append(request.hello)
                    ready = pb.WatchReady(authority_index=5, partition_bound=Duration(seconds=3))
                    queue.put_nowait(pb.WatchAuthorityResponse(ready=ready))
                case "ping" if self.is_echoing:
                    echo = pb.WatchEcho(monotonic_ns=request.ping.monotonic_ns, authority_index=5)
                    queue.put_nowait(pb.WatchAuthorityResponse(echo=echo))
                case "ack":
                    self.acks.append(request.ack.authority_index)

    def say(self, message: pb.WatchAuthorityResponse | None, *, stream: int = -1) -> None:
        """Say something on a watch, or end it."""
        self.watches[stream].put_nowait(message)


class Bench:
    """A KeyVault, its client, and what the watch has heard."""

    def __init__(self, vault: FakeKeyVault, client: KeyVaultClient, stub: LeaseServiceStub) -> None:
        self.vault = vault
        self.client = client
        self.authority = Authority(SystemClock())
        self.watch = AuthorityWatch(stub, self.authority, holder="holder-1", limits=WATCH, clock=SystemClock())


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
        bench = Bench(vault, client, stub)
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


async def test_a_sealed_lease_opens_here_and_says_everything() -> None:
    """Secret and base URL come from the sealed part, the rest from the open one."""
    async with opened() as bench:
        lease = await bench.client.acquire(QUERY)
        assert isinstance(lease, Lease)
        assert lease.secret.reveal() == CANARY.encode()
        assert lease.base_url == "https://api.openai.com/v1"
        assert lease.mapping[Operation.GUARDRAIL_EVALUATION].model == "gpt-4o"
        assert (lease.account, lease.owner_id, lease.binding_index) == (
            Account(AccountKind.OWNER, "owner-1"),
            "owner-1",
            3,
        )
        assert CANARY not in repr(lease)


async def test_leases_asked_for_at_once_share_a_batch_and_keep_their_places() -> None:
    """Sixty leases take few calls, and each caller gets its own."""
    async with opened() as bench:
        queries = [replace(QUERY, agent_id=f"agent-{number}") for number in range(60)]
        leases = await asyncio.gather(*(bench.client.acquire(query) for query in queries))
        assert [lease.agent_id for lease in leases if isinstance(lease, Lease)] == [q.agent_id for q in queries]
        assert len(bench.vault.requests) < 10


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (QUERY, "agent"),
        (LeaseQuery(operation=Operation.EMBEDDING_GENERATION), "platform"),
        (LeaseQuery(operation=Operation.KEY_VALIDATION, key_id="k", acting_for=Principal(owner_id="o")), "validation"),
    ],
)
async def test_each_purpose_is_told(query: LeaseQuery, field: str) -> None:
    """An agent's operation, the platform's, and the validation of a key are different questions."""
    async with opened() as bench:
        await bench.client.acquire(query)
        assert bench.vault.requests[0].items[0].WhichOneof("purpose") == field


async def test_no_key_says_why() -> None:
    """The cause, the account and the owner come through."""
    async with opened() as bench:
        bench.vault.no_key = lease_pb2.NoUsableKey(
            cause=lease_pb2.NO_KEY_CAUSE_NO_KEY, account=AccountMessage(owner_id="owner-1"), owner_id="owner-1"
        )
        found = await bench.client.acquire(QUERY)
        assert isinstance(found, NoKey)
        assert (found.cause, found.account) == (PlatformCause.NO_KEY, Account(AccountKind.OWNER, "owner-1"))


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (status("AGENT_NOT_FOUND"), AgentNotFoundError),
        (status("PROVIDER_KEY_REVOKED", grpc.StatusCode.FAILED_PRECONDITION), ProviderKeyRevokedError),
        (status("ENVELOPE_CORRUPT", grpc.StatusCode.DATA_LOSS), KeyCorruptError),
        (status("AUTHORITY_CORRUPT", grpc.StatusCode.DATA_LOSS), KeyCorruptError),
        (status("OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED), RouterOverloadedError),
        (status("KEK_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE), SuiteUnavailableError),
    ],
)
async def test_a_refusal_is_typed(refusal: Status, expected: type[RouterError]) -> None:
    """What KeyVault refuses reads in our own words."""
    async with opened() as bench:
        bench.vault.refusal = refusal
        with pytest.raises(expected):
            await bench.client.acquire(QUERY)


async def test_one_bad_item_costs_the_others_nothing() -> None:
    """A batch that is refused as a whole is asked for again, each item alone."""
    async with opened() as bench:
        bench.vault.refused_agent = "agent-3"
        queries = [replace(QUERY, agent_id=f"agent-{number}") for number in range(6)]
        found = await asyncio.gather(*(bench.client.acquire(query) for query in queries), return_exceptions=True)
        assert [isinstance(each, Lease) for each in found] == [True, True, True, False, True, True]
        assert isinstance(found[3], InvalidArgumentError)


@pytest.mark.parametrize("attack", ["other_info", "other_provider"])
async def test_a_batch_that_does_not_belong_here_is_refused(attack: str) -> None:
    """Sealed for another purpose, or about another key than the open part says: nothing is used."""
    async with opened() as bench:
        if attack == "other_info":
            bench.vault.info = b"something.else"
        else:
            bench.vault.sealed_provider = "anthropic"
        with pytest.raises(KeyCorruptError):
            await bench.client.acquire(QUERY)


async def test_outcomes_travel_in_batches_and_successes_once_a_second() -> None:
    """Failures are all told; that a key works is told once."""
    async with opened() as bench:
        lease = await bench.client.acquire(QUERY)
        assert isinstance(lease, Lease)
        for kind in (OutcomeKind.SUCCEEDED, OutcomeKind.SUCCEEDED, OutcomeKind.RATE_LIMITED, OutcomeKind.RATE_LIMITED):
            bench.client.report(
                Outcome(
                    lease_id=lease.lease_id,
                    key_id=lease.key_id,
                    key_version=lease.key_version,
                    kind=kind,
                    operation=Operation.GUARDRAIL_EVALUATION,
                    model="gpt-4o",
                    request_id="r",
                    end_time=SystemClock().monotonic(),
                    retry_after=timedelta(days=3),
                )
            )
        await until(lambda: len(bench.vault.outcomes) == 3)
        assert [outcome.kind for outcome in bench.vault.outcomes] == [
            pb.OUTCOME_KIND_SUCCEEDED,
            pb.OUTCOME_KIND_RATE_LIMITED,
            pb.OUTCOME_KIND_RATE_LIMITED,
        ]
        assert bench.vault.outcomes[1].retry_after.ToTimedelta() == timedelta(hours=24)


async def test_a_validation_is_reported_and_the_key_comes_back() -> None:
    """The key after the change is handed on as KeyVault sent it."""
    async with opened() as bench:
        lease = await bench.client.acquire(QUERY)
        assert isinstance(lease, Lease)
        key = await bench.client.report_validation(
            ValidationReport(
                request_id="r",
                lease=lease,
                verdict=KeyVerdict.VALID,
                explanation="works",
                models=("gpt-4o",),
                operations=(Operation.GUARDRAIL_EVALUATION,),
            )
        )
        assert ProviderKey.FromString(key).key_id == "key-1"
        assert bench.vault.validations[0].verdict == pb.VALIDATION_VERDICT_VALID


async def test_the_watch_proves_contact_and_acknowledges_changes() -> None:
    """An echo makes contact; a change is in force before it is acknowledged."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        change = pb.AuthorityChange(authority_index=9, key_id="key-1")
        bench.vault.say(pb.WatchAuthorityResponse(change=change))
        await until(lambda: bench.vault.acks == [9])
        assert bench.authority.index == 9


async def test_a_broken_watch_is_resumed_where_it_was() -> None:
    """Nothing between two streams is missed: the second one names the last index."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        bench.vault.say(pb.WatchAuthorityResponse(change=pb.AuthorityChange(authority_index=9, key_id="key-1")))
        await until(lambda: bench.authority.index == 9)
        bench.vault.say(None)
        await until(lambda: len(bench.vault.hellos) == 2)
        assert [hello.resume_index for hello in bench.vault.hellos] == [0, 9]


async def test_a_log_that_is_shorter_than_what_was_heard_starts_everything_anew() -> None:
    """Leases from before a restored backup end, and the watch begins at the new head."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        lease = await bench.client.acquire(QUERY)
        bench.vault.say(pb.WatchAuthorityResponse(change=pb.AuthorityChange(authority_index=900, key_id="other")))
        await until(lambda: bench.authority.index == 900)
        bench.authority.ensure(lease)
        bench.vault.head = 6
        bench.vault.say(None)
        await until(lambda: bench.authority.index == 5 and bench.authority.is_in_contact)
        assert [hello.resume_index for hello in bench.vault.hellos] == [0, 900, 0]
        with pytest.raises(LeaseEndedError):
            bench.authority.ensure(lease)


async def test_a_silent_watch_is_opened_anew() -> None:
    """A stream that says nothing is as good as broken."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        bench.vault.is_echoing = False
        await until(lambda: len(bench.vault.hellos) >= 2)


async def test_a_draining_watch_is_replaced_before_it_ends() -> None:
    """The next stream is opened while the old one still speaks."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        bench.vault.say(pb.WatchAuthorityResponse(draining=pb.WatchDraining(ends_in=Duration(seconds=5))))
        await until(lambda: len(bench.vault.hellos) == 2)
        bench.vault.say(pb.WatchAuthorityResponse(change=pb.AuthorityChange(authority_index=12, key_id="k")), stream=0)
        await until(lambda: bench.authority.index == 12)
        bench.vault.say(None, stream=0)
        bench.vault.say(pb.WatchAuthorityResponse(change=pb.AuthorityChange(authority_index=13, key_id="k")), stream=1)
        await until(lambda: bench.authority.index == 13)
