"""An owner with an agent, and what they do with the suite: the vocabulary of end-to-end tests, chaos and benches.

Every call is made under the role that it is for, over mutual TLS, through the public contract only.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Self, TypeVar

import grpc

from byok.keyvault.v1 import key_service_pb2, key_service_pb2_grpc, provider_key_pb2
from byok.metering.v1 import (
    account_service_pb2,
    account_service_pb2_grpc,
    limit_service_pb2,
    limit_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from byok.router.v1 import (
    operation_service_pb2,
    operation_service_pb2_grpc,
    provider_service_pb2,
    provider_service_pb2_grpc,
)
from byok.type.v1 import account_pb2, operation_pb2
from servicekit.channels import RotatingChannel, open_channel
from servicekit.ids import new_uuid7
from testkit.simulator.vendors import make_key
from testkit.stack.stack import Stack
from testkit.waiting import eventually

POLICY = "Nothing that advertises goods which are FORBIDDEN."
_PAGE_SIZE = 1_000
_TRIES_MAX = 6
_RETRY_PAUSE_SECONDS = 0.3
_OLLAMA_ROUTE = provider_key_pb2.OperationRoute(
    operation=operation_pb2.OPERATION_GUARDRAIL_EVALUATION,
    model="llama3.2",
    capabilities=["structured_output"],
    context_window_tokens=32_768,
)


def new_request_id() -> str:
    """Return a request id of now."""
    return new_uuid7(datetime.now(UTC))


_Answer = TypeVar("_Answer")


async def _patiently(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Make an idempotent call again while the suite is unavailable, as its client library does."""
    for _ in range(_TRIES_MAX - 1):
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(_RETRY_PAUSE_SECONDS)
    return await call()


class Suite:
    """Stubs of every public service of a running stack."""

    def __init__(self, stack: Stack) -> None:
        """Open channels; each connects with its first call."""
        self.stack = stack
        self._channels: dict[tuple[str, str], RotatingChannel] = {}
        metering, keyvault, router = "metering", "keyvault", "router"
        self.accounts = account_service_pb2_grpc.AccountServiceStub(self.channel(metering, "platform"))
        self.usage = usage_service_pb2_grpc.UsageServiceStub(self.channel(metering, "platform"))
        self.limits = limit_service_pb2_grpc.LimitServiceStub(self.channel(metering, "edge"))
        self.keys = key_service_pb2_grpc.KeyServiceStub(self.channel(keyvault, "edge"))
        self.providers = provider_service_pb2_grpc.ProviderServiceStub(self.channel(router, "edge"))
        self.operations = operation_service_pb2_grpc.OperationServiceStub(self.channel(router, "platform"))

    def channel(self, service: str, role: str) -> RotatingChannel:
        """Return the channel to all replicas of a service under a role."""
        if (service, role) not in self._channels:
            self._channels[service, role] = open_channel(
                self.stack.target(service), self.stack.client_tls(role), server_name="localhost"
            )
        return self._channels[service, role]

    async def __aenter__(self) -> Self:
        """Return this."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the channels."""
        for channel in self._channels.values():
            await channel.close()


class Customer:
    """One owner and one agent of theirs."""

    def __init__(self, suite: Suite, *, name: str = "") -> None:
        """Name the owner; an owner of a name of its own by default."""
        self._suite = suite
        self._name = name or uuid.uuid4().hex[:12]
        self.owner_id = f"owner-{self._name}"
        self.agent_id = f"agent-{self._name}"
        self.principal = account_pb2.Principal(owner_id=self.owner_id)
        self.account = account_pb2.Account(owner_id=self.owner_id)

    async def register(self) -> account_service_pb2.Agent:
        """Register the agent under the owner."""
        request = account_service_pb2.RegisterAgentRequest(
            request_id=new_request_id(),
            acting_for=self.principal,
            actor="testkit",
            agent_id=self.agent_id,
            owner_id=self.owner_id,
        )
        return (await _patiently(lambda: self._suite.accounts.RegisterAgent(request))).agent

    def secret(self, provider: str, *, fault: str = "") -> str:
        """Return a provider key of the owner's, in the vendor's shape."""
        return make_key(provider, self._name, fault=fault)

    async def add_key(
        self, provider: str = "openai", *, secret: str | None = None, base_url: str | None = None
    ) -> provider_key_pb2.ProviderKey:
        """Add a key for all of the owner's agents; at the simulator, unless told otherwise."""
        request = key_service_pb2.CreateKeyRequest(
            request_id=new_request_id(),
            acting_for=self.principal,
            actor="testkit",
            scope=provider_key_pb2.KEY_SCOPE_OWNER,
            provider=provider,
            base_url=self._suite.stack.simulator.base_url(provider) if base_url is None else base_url,
            label=f"{provider} of {self.owner_id}",
            # The abilities of a self-hosted model are its owner's to declare.
            mapping=[_OLLAMA_ROUTE] if provider == "ollama" else [],
            plaintext=(self.secret(provider) if secret is None else secret).encode(),
        )
        return (await _patiently(lambda: self._suite.keys.CreateKey(request))).key

    async def validate(self, key_id: str) -> provider_service_pb2.ValidateKeyResponse:
        """Have the key tested at its provider."""
        request = provider_service_pb2.ValidateKeyRequest(
            request_id=new_request_id(), acting_for=self.principal, actor="testkit", key_id=key_id
        )
        return await _patiently(lambda: self._suite.providers.ValidateKey(request))

    async def set_up(self, provider: str = "openai", *, secret: str | None = None) -> provider_key_pb2.ProviderKey:
        """Register the agent, add a key and validate it."""
        await self.register()
        key = await self.add_key(provider, secret=secret)
        return (await self.validate(key.key_id)).key

    async def revoke(self, key_id: str) -> key_service_pb2.RevokeKeyResponse:
        """Revoke a key; when this returns, no call starts on it."""
        request = key_service_pb2.RevokeKeyRequest(
            request_id=new_request_id(), acting_for=self.principal, actor="testkit", key_id=key_id, reason="test"
        )
        return await self._suite.keys.RevokeKey(request)

    def context(self, request_id: str | None = None) -> operation_service_pb2.OperationContext:
        """Return who an operation is for."""
        return operation_service_pb2.OperationContext(
            request_id=request_id or new_request_id(), agent_id=self.agent_id, actor="testkit"
        )

    async def evaluate(
        self, content: str = "A recipe for bread.", *, request_id: str | None = None, timeout_seconds: float = 30
    ) -> operation_service_pb2.EvaluateGuardrailResponse:
        """Have content judged."""
        request = operation_service_pb2.EvaluateGuardrailRequest(
            context=self.context(request_id), content=content, policy_text=POLICY
        )
        return await self._suite.operations.EvaluateGuardrail(request, timeout=timeout_seconds)

    async def embed(
        self, texts: list[str], *, request_id: str | None = None
    ) -> operation_service_pb2.GenerateEmbeddingsResponse:
        """Turn texts into vectors."""
        request = operation_service_pb2.GenerateEmbeddingsRequest(context=self.context(request_id), texts=texts)
        return await self._suite.operations.GenerateEmbeddings(request)

    async def cap(
        self,
        amount: int,
        *,
        unit: "limit_service_pb2.LimitUnit.ValueType" = limit_service_pb2.LIMIT_UNIT_CALLS,
        operation: "operation_pb2.Operation.ValueType" = operation_pb2.OPERATION_GUARDRAIL_EVALUATION,
    ) -> limit_service_pb2.SetLimitResponse:
        """Cap the agent's day, calls of guardrail evaluation by default."""
        limit = limit_service_pb2.Limit(
            account=self.account,
            agent_id=self.agent_id,
            operation=operation,
            unit=unit,
            window=limit_service_pb2.LIMIT_WINDOW_DAY,
            enforcement=limit_service_pb2.LIMIT_ENFORCEMENT_HARD,
            amount=amount,
        )
        request = limit_service_pb2.SetLimitRequest(
            request_id=new_request_id(), acting_for=self.principal, actor="testkit", limit=limit
        )
        return await self._suite.limits.SetLimit(request)

    async def limit_usage(self, limit_id: str) -> limit_service_pb2.LimitUsage:
        """Return how much of one of the agent's limits is settled, held and in suspense."""
        request = limit_service_pb2.ListLimitsRequest(
            account=self.account, acting_for=self.principal, agent_id=self.agent_id
        )
        answer = await self._suite.limits.ListLimits(request)
        return next(each for each in answer.limits if each.limit.limit_id == limit_id)

    async def entries(self) -> list[usage_service_pb2.LedgerEntry]:
        """Return every ledger entry of the account."""
        found: list[usage_service_pb2.LedgerEntry] = []
        token = ""
        while True:
            request = usage_service_pb2.ListLedgerEntriesRequest(
                account=self.account, acting_for=self.principal, page_size=_PAGE_SIZE, page_token=token
            )
            page = await self._suite.usage.ListLedgerEntries(request)
            found.extend(page.entries)
            token = page.next_page_token
            if not token:
                return found

    async def wait_for_entries(self, at_least: int) -> list[usage_service_pb2.LedgerEntry]:
        """Return the ledger once the flush has brought it this far."""
        return await eventually(self.entries, lambda entries: len(entries) >= at_least)

    async def wait_for_state(self, key_id: str, state: "provider_key_pb2.KeyState.ValueType") -> None:
        """Wait until the key is in a state: outcomes travel to KeyVault in batches, behind the answer."""
        request = key_service_pb2.GetKeyRequest(key_id=key_id, acting_for=self.principal)
        await eventually(lambda: self._suite.keys.GetKey(request), lambda answer: answer.key.state == state)

    async def wait_for_cost(self, nano_usd: int) -> None:
        """Wait until just this much is settled and nothing is held: flush and release come behind the answer."""
        await eventually(
            self.summary, lambda seen: (seen.settled_cost_nano_usd, seen.held_cost_nano_usd) == (nano_usd, 0)
        )

    async def summary(self) -> usage_service_pb2.GetUsageSummaryResponse:
        """Return what the account has spent."""
        request = usage_service_pb2.GetUsageSummaryRequest(account=self.account, acting_for=self.principal)
        return await self._suite.usage.GetUsageSummary(request)
