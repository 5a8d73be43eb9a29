"""The agents that a bench works for: registered, each owner with a provider key at the canned provider, validated."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from bench.canned import MODEL
from bench.errors import BenchError
from byok.keyvault.v1.key_service_pb2 import CreateKeyRequest
from byok.keyvault.v1.key_service_pb2_grpc import KeyServiceStub
from byok.keyvault.v1.provider_key_pb2 import KEY_SCOPE_OWNER, Custody, OperationRoute
from byok.metering.v1.account_service_pb2 import RegisterAgentRequest
from byok.metering.v1.account_service_pb2_grpc import AccountServiceStub
from byok.metering.v1.limit_service_pb2 import (
    LIMIT_UNIT_CALLS,
    LIMIT_UNIT_COST,
    LIMIT_UNIT_TOKENS,
    LIMIT_WINDOW_DAY,
    LIMIT_WINDOW_HOUR,
    LIMIT_WINDOW_MINUTE,
    LIMIT_WINDOW_MONTH,
    Limit,
    LimitUnit,
    LimitWindow,
    SetLimitRequest,
)
from byok.metering.v1.limit_service_pb2_grpc import LimitServiceStub
from byok.router.v1.provider_service_pb2 import KEY_VERDICT_VALID, ValidateKeyRequest
from byok.router.v1.provider_service_pb2_grpc import ProviderServiceStub
from byok.type.v1.account_pb2 import Account, Principal
from byok.type.v1.operation_pb2 import OPERATION_GUARDRAIL_EVALUATION
from servicekit.ids import new_uuid7

_AT_ONCE: Final = 12
_TRIES: Final = 5
_PAUSE_SECONDS: Final = 0.3
_CALL_SECONDS: Final = 60
_OUT_OF_REACH: Final = 2**53 - 1
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Member:
    """An agent and its owner; ids of all members have one length."""

    agent_id: str
    owner_id: str


def members(kind: str, count: int) -> list[Member]:
    """Name agents, each with an owner of its own."""
    return [Member(f"bench-agent-{kind}-{number:06}", f"bench-owner-{kind}-{number:06}") for number in range(count)]


@dataclass(frozen=True)
class Desk:
    """The stubs by which a fleet is made, as an edge would."""

    keys: KeyServiceStub
    accounts: AccountServiceStub
    limits: LimitServiceStub
    providers: ProviderServiceStub

    async def register(self, fleet: list[Member]) -> None:
        """Register the agents, and raise the default daily cost cap of their accounts out of the load's reach."""

        async def enlist(member: Member) -> None:
            await self._register(member)
            await self._set_limit(member, LIMIT_UNIT_COST, LIMIT_WINDOW_DAY)

        await _each(fleet, enlist)

    async def give_keys(self, fleet: list[Member], *, base_url: str, custody: Custody.ValueType) -> None:
        """Store a key for each owner and have it validated.

        Raises:
            BenchError: a key is not valid.
        """

        async def give(member: Member) -> None:
            await self._give_key(member, base_url, custody)

        await _each(fleet, give)

    async def set_eight_limits(self, fleet: list[Member]) -> None:
        """Give every account eight limits, the raised daily cost cap among them, all out of reach."""

        async def limit(member: Member) -> None:
            for unit, window in _FURTHER_SEVEN:
                await self._set_limit(member, unit, window)

        await _each(fleet, limit)

    async def _register(self, member: Member) -> None:
        await _patiently(
            self.accounts.RegisterAgent,
            RegisterAgentRequest(
                request_id=_new_id(),
                acting_for=Principal(owner_id=member.owner_id),
                actor="bench",
                agent_id=member.agent_id,
                owner_id=member.owner_id,
            ),
        )

    async def _give_key(self, member: Member, base_url: str, custody: Custody.ValueType) -> None:
        principal = Principal(owner_id=member.owner_id)
        created = await _patiently(
            self.keys.CreateKey,
            CreateKeyRequest(
                request_id=_new_id(),
                acting_for=principal,
                actor="bench",
                scope=KEY_SCOPE_OWNER,
                provider="openai",
                base_url=base_url,
                label="bench",
                mapping=[OperationRoute(operation=OPERATION_GUARDRAIL_EVALUATION, model=MODEL)],
                custody=custody,
                plaintext=f"sk-proj-{member.owner_id.replace('-', '')}0000000000".encode(),
            ),
        )
        validated = await _patiently(
            self.providers.ValidateKey,
            ValidateKeyRequest(request_id=_new_id(), acting_for=principal, actor="bench", key_id=created.key.key_id),
        )
        if validated.verdict != KEY_VERDICT_VALID:
            raise BenchError(f"the key of {member.owner_id} is not valid: {validated.explanation}")

    async def _set_limit(self, member: Member, unit: LimitUnit.ValueType, window: LimitWindow.ValueType) -> None:
        await _patiently(
            self.limits.SetLimit,
            SetLimitRequest(
                request_id=_new_id(),
                acting_for=Principal(owner_id=member.owner_id),
                actor="bench",
                limit=Limit(
                    account=Account(owner_id=member.owner_id),
                    whole_account=True,
                    unit=unit,
                    window=window,
                    amount=_OUT_OF_REACH,
                ),
            ),
        )


# With the daily cost cap that every account has.
_FURTHER_SEVEN: Final = (
    (LIMIT_UNIT_CALLS, LIMIT_WINDOW_MINUTE),
    (LIMIT_UNIT_CALLS, LIMIT_WINDOW_HOUR),
    (LIMIT_UNIT_CALLS, LIMIT_WINDOW_DAY),
    (LIMIT_UNIT_CALLS, LIMIT_WINDOW_MONTH),
    (LIMIT_UNIT_TOKENS, LIMIT_WINDOW_DAY),
    (LIMIT_UNIT_TOKENS, LIMIT_WINDOW_MONTH),
    (LIMIT_UNIT_COST, LIMIT_WINDOW_MONTH),
)


def desk_of(*, keyvault: grpc.aio.Channel, metering: grpc.aio.Channel, router: grpc.aio.Channel) -> Desk:
    """Make the stubs over open channels."""
    return Desk(
        keys=KeyServiceStub(keyvault),
        accounts=AccountServiceStub(metering),
        limits=LimitServiceStub(metering),
        providers=ProviderServiceStub(router),
    )


async def _patiently(rpc: Callable[..., Awaitable[_Answer]], request: Message) -> _Answer:
    """Call an idempotent RPC, again when the suite says that it is not available, as every client of it does."""
    for _ in range(_TRIES - 1):
        try:
            return await rpc(request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        await asyncio.sleep(_PAUSE_SECONDS)
    return await rpc(request, timeout=_CALL_SECONDS)


async def _each(items: Iterable[_Item], work: Callable[[_Item], Awaitable[None]]) -> None:
    """Do the work for each item, a few at once."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))


def _new_id() -> str:
    return new_uuid7(datetime.now(UTC))
