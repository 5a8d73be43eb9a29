"""Metering as real processes over mutual TLS, beside a KeyVault that only binds agents and shows its audit log.

Importable by tests as `services.metering.tests.served`.
"""

import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from typing_extensions import override

from byok.keyvault.v1 import audit_service_pb2_grpc, key_service_pb2, key_service_pb2_grpc, provider_key_pb2
from byok.metering.v1 import (
    account_service_pb2,
    account_service_pb2_grpc,
    admission_service_pb2,
    admission_service_pb2_grpc,
    limit_service_pb2,
    limit_service_pb2_grpc,
    reservation_pb2,
    usage_service_pb2_grpc,
)
from byok.type.v1 import account_pb2, operation_pb2, usage_pb2
from servicekit.channels import RotatingChannel, open_channel
from servicekit.clock import SystemClock
from servicekit.identity import AccessPolicy, TlsFiles
from servicekit.ids import new_uuid7
from servicekit.metrics import Metrics
from servicekit.server import GrpcServer
from servicekit.settings import ServerSettings, TlsSettings
from services.metering.tests.custody import ERRORS, AuditLog, AuditLogOnTheWire
from testkit.pki import ThrowawayCa
from testkit.stack.services import Service, ServiceProcess

_CLOCK = SystemClock()
OPERATOR = account_pb2.Principal(operator_id="root")


class BindingKeyVault(key_service_pb2_grpc.KeyServiceServicer):
    """Binds whoever asks, and counts."""

    def __init__(self) -> None:
        self.bound: list[str] = []

    @override
    async def BindAgent(self, request: key_service_pb2.BindAgentRequest, context: Any) -> Any:
        self.bound.append(request.agent_id)
        binding = provider_key_pb2.AgentBinding(
            agent_id=request.agent_id,
            owner_id=request.owner_id,
            account=request.account,
            binding_version=1,
            authority_index=len(self.bound),
        )
        return key_service_pb2.BindAgentResponse(binding=binding)


class Client:
    """Stubs of one role to one replica."""

    def __init__(self, channel: RotatingChannel) -> None:
        self.admission: Any = admission_service_pb2_grpc.AdmissionServiceStub(channel)
        self.accounts: Any = account_service_pb2_grpc.AccountServiceStub(channel)
        self.limits: Any = limit_service_pb2_grpc.LimitServiceStub(channel)
        self.usage: Any = usage_service_pb2_grpc.UsageServiceStub(channel)
        self.channel = channel


class Served:
    """Replicas of Metering, and clients to them."""

    def __init__(self, replicas: list[ServiceProcess], ca: ThrowawayCa, stack: AsyncExitStack) -> None:
        self.replicas = replicas
        self.keyvault = BindingKeyVault()  # type: ignore[abstract]  # it refuses every other RPC
        self.log = AuditLog(1)
        self._ca = ca
        self._stack = stack

    async def client(self, role: str, *, replica: int = 0, tls: TlsFiles | None = None) -> Client:
        """Return a client under a role's certificate."""
        channel = open_channel(f"localhost:{self.replicas[replica].grpc_port}", tls or self._ca.issue(role))
        await self._stack.enter_async_context(channel)
        return Client(channel)


@asynccontextmanager
async def serve(
    directory: Path, ca: ThrowawayCa, *, dsn: str, redis_url: str, replicas: int = 1, more: dict[str, str] | None = None
) -> AsyncIterator[Served]:
    """Run replicas for as long as the context lasts."""
    async with AsyncExitStack() as stack:
        served = Served([], ca, stack)
        keyvault = await stack.enter_async_context(_keyvault(served, ca))
        tls = ca.issue("metering")
        environment = {
            "PATH": os.environ["PATH"],  # noqa: TID251 (the child's, not ours)
            "BYOK_METERING_SERVER__TLS__CERTIFICATE_FILE": str(tls.certificate),
            "BYOK_METERING_SERVER__TLS__PRIVATE_KEY_FILE": str(tls.private_key),
            "BYOK_METERING_SERVER__TLS__CA_FILE": str(tls.ca),
            "BYOK_METERING_POSTGRES__DSN": dsn,
            "BYOK_METERING_REDIS__URL": redis_url,
            "BYOK_METERING_KEYVAULT__TARGET": f"localhost:{keyvault.port}",
            "BYOK_METERING_MIGRATE_ON_START": "true",
            **(more or {}),
        }
        for number in range(replicas):
            process = ServiceProcess(Service.METERING, replica=number, directory=directory, environment=environment)
            served.replicas.append(process)
            stack.callback(_end, process)
            process.launch()
        for process in served.replicas:
            process.wait_until_ready()
        yield served


def _end(process: ServiceProcess) -> None:
    if process.is_running:
        process.kill9()


@asynccontextmanager
async def _keyvault(served: Served, ca: ThrowawayCa) -> AsyncIterator[GrpcServer]:
    tls = ca.issue("keyvault")
    settings = ServerSettings(
        tls=TlsSettings(certificate_file=tls.certificate, private_key_file=tls.private_key, ca_file=tls.ca)
    )
    policy = AccessPolicy(
        roles={"metering": ["spiffe://*/ns/*/sa/metering"]},
        allow={
            "byok.keyvault.v1.KeyService/BindAgent": ["metering"],
            "byok.keyvault.v1.AuditService/ReadFeed": ["metering"],
            "byok.keyvault.v1.AuditService/GetCheckpoint": ["metering"],
        },
    )
    log = AuditLogOnTheWire(served.log)  # type: ignore[abstract]  # it refuses every other RPC
    async with GrpcServer(
        settings,
        policy=policy,
        errors=ERRORS,
        metrics=Metrics("keyvault"),
        services=[
            (key_service_pb2_grpc.add_KeyServiceServicer_to_server, served.keyvault, "byok.keyvault.v1.KeyService"),
            (audit_service_pb2_grpc.add_AuditServiceServicer_to_server, log, "byok.keyvault.v1.AuditService"),
        ],
    ) as server:
        yield server


def new_id() -> str:
    """Return a new request id."""
    return new_uuid7(_CLOCK.now())


def account_of(owner_id: str) -> account_pb2.Account:
    """Return an owner's account."""
    return account_pb2.Account(owner_id=owner_id)


async def register(client: Client, owner_id: str, agent_id: str, **more: Any) -> Any:
    """Register an agent and return it."""
    request = account_service_pb2.RegisterAgentRequest(
        request_id=new_id(), acting_for=OPERATOR, actor="test", agent_id=agent_id, owner_id=owner_id, **more
    )
    return (await client.accounts.RegisterAgent(request)).agent


async def set_limit(client: Client, owner_id: str, unit: int, amount: int, **more: Any) -> Any:
    """Set a daily limit and return the answer."""
    limit = limit_service_pb2.Limit(
        account=account_of(owner_id),
        unit=limit_service_pb2.LimitUnit.ValueType(unit),
        window=limit_service_pb2.LIMIT_WINDOW_DAY,
        amount=amount,
        **more,
    )
    request = limit_service_pb2.SetLimitRequest(request_id=new_id(), acting_for=OPERATOR, actor="test", limit=limit)
    return await client.limits.SetLimit(request)


def reserve_item(owner_id: str, agent_id: str, holder: str) -> reservation_pb2.ReserveItem:
    """Return a reserve of an owner's agent."""
    return reservation_pb2.ReserveItem(
        call=reservation_pb2.CallIdentity(request_id=new_id(), call_index=0, holder=holder),
        attribution=reservation_pb2.Attribution(
            account=account_of(owner_id),
            agent_id=agent_id,
            owner_id=owner_id,
            operation=operation_pb2.OPERATION_GUARDRAIL_EVALUATION,
            subject=account_pb2.Subject(type="submission", id="s-1"),
            payer=account_pb2.PAYER_OWNER,
            key_id="key-1",
            lease_id="lease-1",
            provider="anthropic",
            model="claude-haiku-4-5",
        ),
        estimate=reservation_pb2.Estimate(
            input_tokens=500,
            fixed_cost_nano_usd=400_000,
            output_nano_usd_per_mtok=5_000_000_000,
            output_tokens_min=100,
            output_tokens_max=1_000,
        ),
        body_hash=hashlib.sha256(b"body").digest(),
        hold_ttl=Duration(seconds=120),
    )


def settle_item(
    item: reservation_pb2.ReserveItem, grant: reservation_pb2.Grant, *, cost: int = 1_000_000
) -> reservation_pb2.SettleItem:
    """Return the final settlement of a granted reserve."""
    usage = usage_pb2.Usage(
        source=usage_pb2.USAGE_SOURCE_REPORTED, cost_nano_usd=cost, cost_source=usage_pb2.COST_SOURCE_CATALOGUE
    )
    counts = usage_pb2.TokenCounts(input_tokens=480, output_tokens=120)
    usage.models.add(
        provider="anthropic", model="claude-haiku-4-5", processed=counts, billable=counts, cost_nano_usd=cost
    )
    return reservation_pb2.SettleItem(
        reservation_id=grant.reservation_id,
        call=item.call,
        attribution=item.attribution,
        usage=usage,
        final=True,
        sealed_answer=b"sealed",
        body_hash=item.body_hash,
        estimate=item.estimate,
        granted_output_tokens=grant.granted_output_tokens,
        attempt=grant.attempt,
        provider_latency=Duration(nanos=250_000_000),
    )


async def reserve(client: Client, items: Sequence[reservation_pb2.ReserveItem]) -> list[Any]:
    """Reserve a batch and return the results."""
    answer = await client.admission.ReserveBatch(admission_service_pb2.ReserveBatchRequest(items=items))
    return list(answer.results)


async def settle(client: Client, items: Sequence[reservation_pb2.SettleItem]) -> list[Any]:
    """Settle a batch and return the results."""
    answer = await client.admission.SettleBatch(admission_service_pb2.SettleBatchRequest(items=items))
    return list(answer.results)
