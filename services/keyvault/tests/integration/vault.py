"""A KeyVault under test, and the Router processes and owners who use it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from byok.keyvault.v1 import (
    emergency_service_pb2,
    emergency_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
    lease_pb2,
    lease_service_pb2,
    lease_service_pb2_grpc,
    provider_key_pb2,
)
from byok.type.v1 import account_pb2, operation_pb2
from keyvault.app import serve
from keyvault.domain.ownership import AccountKind
from keyvault.settings import Settings
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.ids import new_uuid7
from servicekit.metrics import Metrics
from servicekit.wire import RemoteError, error_from_rpc
from testkit.pki import ThrowawayCa

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from servicekit.identity import TlsFiles

SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
SECRET = b"sk-ant-api03-canary-0123456789abcdefghijklmnop"
GUARDRAIL = operation_pb2.OPERATION_GUARDRAIL_EVALUATION


def new_id() -> str:
    """Return a request id."""
    return new_uuid7(SystemClock().now())


def name(kind: str) -> str:
    """Return an id that no other test uses."""
    return f"{kind}-{uuid.uuid4().hex[:12]}"


async def refusal(call: Awaitable[object]) -> RemoteError:
    """Return how a call was refused; it is a failure if it was not."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error)
    raise AssertionError("the call was not refused")


def owner(owner_id: str = "owner-1") -> account_pb2.Principal:
    """Return an owner as a principal."""
    return account_pb2.Principal(owner_id=owner_id)


def agent_item(agent_id: str = "agent-1", **fields: Any) -> lease_pb2.LeaseItem:
    """Return an item for a guardrail of an agent."""
    return lease_pb2.LeaseItem(agent=lease_pb2.AgentPurpose(agent_id=agent_id, operation=GUARDRAIL), **fields)


def validation_item(key_id: str, owner_id: str = "owner-1") -> lease_pb2.LeaseItem:
    """Return an item for the test call of a key."""
    return lease_pb2.LeaseItem(validation=lease_pb2.ValidationPurpose(key_id=key_id, acting_for=owner(owner_id)))


def create_request(**fields: Any) -> key_service_pb2.CreateKeyRequest:
    """Return a request for a key of all agents of an owner."""
    usual: dict[str, Any] = {
        "request_id": new_id(),
        "acting_for": owner(),
        "actor": "test",
        "scope": provider_key_pb2.KEY_SCOPE_OWNER,
        "provider": "anthropic",
        "plaintext": SECRET,
    }
    if "sealed" in fields:
        del usual["plaintext"]
    return key_service_pb2.CreateKeyRequest(**(usual | fields))


def revoke_request(key_id: str, **fields: Any) -> key_service_pb2.RevokeKeyRequest:
    """Return a request to revoke a key."""
    usual: dict[str, Any] = {"request_id": new_id(), "acting_for": owner(), "actor": "test", "key_id": key_id}
    return key_service_pb2.RevokeKeyRequest(**(usual | fields))


def member(organization_id: str = "org-1", owner_id: str = "owner-1") -> account_pb2.Principal:
    """Return an owner who is asserted to be a member of an organization."""
    return account_pb2.Principal(owner_id=owner_id, organization_ids=[organization_id])


def share_request(key_id: str, agent_id: str = "agent-1", **fields: Any) -> key_service_pb2.ShareKeyRequest:
    """Return a request to share a key of the organization with an agent, for guardrails."""
    usual: dict[str, Any] = {
        "request_id": new_id(),
        "acting_for": member(),
        "actor": "test",
        "key_id": key_id,
        "agent_id": agent_id,
        "operations": [GUARDRAIL],
    }
    return key_service_pb2.ShareKeyRequest(**(usual | fields))


def unshare_request(key_id: str, agent_id: str = "agent-1", **fields: Any) -> key_service_pb2.UnshareKeyRequest:
    """Return a request to end a share."""
    usual: dict[str, Any] = {
        "request_id": new_id(),
        "acting_for": member(),
        "actor": "test",
        "key_id": key_id,
        "agent_id": agent_id,
    }
    return key_service_pb2.UnshareKeyRequest(**(usual | fields))


def halt_request(scope: emergency_service_pb2.HaltScope, **fields: Any) -> emergency_service_pb2.HaltRequest:
    """Return an operator's request to halt a scope."""
    usual: dict[str, Any] = {
        "request_id": new_id(),
        "acting_for": account_pb2.Principal(operator_id="op"),
        "actor": "test",
        "scope": scope,
        "reason": "a test",
    }
    return emergency_service_pb2.HaltRequest(**(usual | fields))


def resume_request(halt_id: str, **fields: Any) -> emergency_service_pb2.ResumeRequest:
    """Return an operator's request to end a halt."""
    usual: dict[str, Any] = {
        "request_id": new_id(),
        "acting_for": account_pb2.Principal(operator_id="op"),
        "actor": "test",
        "halt_id": halt_id,
    }
    return emergency_service_pb2.ResumeRequest(**(usual | fields))


@dataclass
class RouterProcess:
    """One Router incarnation: its key pair, and how it opens what it is leased."""

    vault: Vault
    leases: Any
    holder: str = field(default_factory=new_id)
    key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)

    def request(self, *items: lease_pb2.LeaseItem) -> lease_service_pb2.AcquireLeasesRequest:
        """Return a request for these items, to be sealed to this process."""
        return lease_service_pb2.AcquireLeasesRequest(
            holder=self.holder, recipient_public_key=self.key.public_key().public_bytes_raw(), items=items
        )

    async def acquire(self, *items: lease_pb2.LeaseItem) -> lease_service_pb2.AcquireLeasesResponse:
        """Ask for leases."""
        response: lease_service_pb2.AcquireLeasesResponse = await self.leases.AcquireLeases(self.request(*items))
        return response

    def open(
        self,
        response: lease_service_pb2.AcquireLeasesResponse | lease_service_pb2.ClaimKeysForValidationResponse,
    ) -> list[lease_pb2.SealedLease]:
        """Open what was sealed to this process."""
        parts = (b"byok.lease.v1", response.deployment.encode(), self.holder.encode())
        info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return list(lease_pb2.SealedLeases.FromString(SUITE.decrypt(response.sealed_leases, self.key, info)).leases)

    async def lease_for_validation(self, key_id: str) -> lease_pb2.Lease:
        """Lease a key for its test call, on behalf of whoever owns it."""
        purpose = lease_pb2.ValidationPurpose(key_id=key_id, acting_for=await self.vault.principal_of(key_id))
        result = (await self.acquire(lease_pb2.LeaseItem(validation=purpose))).results[0]
        assert result.WhichOneof("result") == "lease", result
        return result.lease

    async def validate(self, key_id: str, key_version: int = 0, verdict: int = 1) -> provider_key_pb2.ProviderKey:
        """Test a key and report what was found; that its present secret works, unless told otherwise."""
        lease = await self.lease_for_validation(key_id)
        request = lease_service_pb2.ReportValidationRequest(
            request_id=new_id(),
            holder=self.holder,
            lease_id=lease.lease_id,
            key_id=key_id,
            key_version=key_version or lease.key_version,
            verdict=verdict,  # type: ignore[arg-type]  # unknown numbers are sent on purpose
        )
        key: provider_key_pb2.ProviderKey = (await self.leases.ReportValidation(request)).key
        return key


@dataclass
class Vault:
    """One running replica and how to reach it."""

    settings: Settings
    ca: ThrowawayCa
    dsn: str
    port: int = 0
    admin_port: int = 0
    metrics: Metrics = field(default_factory=lambda: Metrics("keyvault"))
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)

    async def channel(self, role: str, tls: TlsFiles | None = None) -> grpc.aio.Channel:
        """Return a channel with the certificate of `role`."""
        if role not in self._channels:
            files = tls or self.ca.issue(role, uri=f"spiffe://byok.local/ns/byok/sa/{role}")
            channel = open_channel(f"localhost:{self.port}", files, server_name="localhost")
            self._channels[role] = await self.stack.enter_async_context(channel)
        return self._channels[role]

    async def keys(self, role: str = "edge") -> Any:
        """Return a KeyService stub."""
        return key_service_pb2_grpc.KeyServiceStub(await self.channel(role))

    async def leases(self, role: str = "router") -> Any:
        """Return a LeaseService stub."""
        return lease_service_pb2_grpc.LeaseServiceStub(await self.channel(role))

    async def router(self) -> RouterProcess:
        """Return a new Router process."""
        return RouterProcess(self, await self.leases())

    async def bind(
        self, agent_id: str = "agent-1", owner_id: str = "owner-1", **fields: Any
    ) -> key_service_pb2.BindAgentResponse:
        """Bind an agent to its owner."""
        usual: dict[str, Any] = {
            "request_id": new_id(),
            "actor": "test",
            "agent_id": agent_id,
            "owner_id": owner_id,
            "account": account_pb2.Account(owner_id=owner_id),
        }
        request = key_service_pb2.BindAgentRequest(**(usual | fields))
        response: key_service_pb2.BindAgentResponse = await (await self.keys("metering")).BindAgent(request)
        return response

    async def working_key(self, **fields: Any) -> provider_key_pb2.ProviderKey:
        """Create a key and report that it works."""
        created = await (await self.keys()).CreateKey(create_request(**fields))
        return await (await self.router()).validate(created.key.key_id)

    async def emergency(self, role: str = "operator") -> Any:
        """Return an EmergencyService stub."""
        return emergency_service_pb2_grpc.EmergencyServiceStub(await self.channel(role))

    async def organization_key(self, organization_id: str = "org-1", **fields: Any) -> provider_key_pb2.ProviderKey:
        """Create a key of an organization and report that it works."""
        usual: dict[str, Any] = {
            "acting_for": member(organization_id),
            "scope": provider_key_pb2.KEY_SCOPE_ORGANIZATION,
            "organization_id": organization_id,
        }
        return await self.working_key(**(usual | fields))

    async def shared_key(
        self, agent_id: str = "agent-1", organization_id: str = "org-1", **fields: Any
    ) -> provider_key_pb2.ProviderKey:
        """Create a key of an organization and share it with a new agent of it."""
        await self.bind(agent_id, account=account_pb2.Account(organization_id=organization_id))
        key = await self.organization_key(organization_id, **fields)
        request = share_request(key.key_id, agent_id, acting_for=member(organization_id))
        await (await self.keys()).ShareKey(request)
        return key

    async def principal_of(self, key_id: str) -> account_pb2.Principal:
        """Return somebody who may act on a key."""
        rows = await self.sql(
            "SELECT owner_kind, owner_id FROM agent_ai_keys WHERE provider_key_id = $1 AND superseded_index IS NULL",
            key_id,
        )
        kind, party_id = (AccountKind(rows[0]["owner_kind"]), rows[0]["owner_id"]) if rows else (AccountKind.OWNER, "")
        if kind is AccountKind.PLATFORM:
            return account_pb2.Principal(operator_id="op")
        if kind is AccountKind.ORGANIZATION:
            return account_pb2.Principal(owner_id="member", organization_ids=[party_id])
        return owner(party_id or "nobody")

    async def sql(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Read the database."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return await connection.fetch(query, *args)
        finally:
            await connection.close()

    async def waiting(self) -> list[asyncpg.Record]:
        """Return the sessions of this database that wait for a lock."""
        return await self.sql(
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )

    async def forge(self, query: str, *args: object) -> None:
        """Write to the database past every trigger, as an attacker who owns it would."""
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute("SET session_replication_role = replica")
            await connection.execute(query, *args)
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Vault]:
        """Run it while the context lasts."""
        stop = asyncio.Event()
        ready: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()

        def announce(grpc_port: int, admin_port: int) -> None:
            ready.set_result((grpc_port, admin_port))

        task = asyncio.create_task(serve(self.settings, stop, self.metrics, announce=announce))
        started: list[asyncio.Future[Any]] = [task, ready]
        await asyncio.wait(started, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await task
        self.port, self.admin_port = ready.result()
        try:
            yield self
        finally:
            await self.stack.aclose()
            stop.set()
            await task
