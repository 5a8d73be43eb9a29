"""KeyVault's bindings of agents, over gRPC."""

from datetime import timedelta
from typing import Final

import grpc
from typing_extensions import override

from byok.keyvault.v1 import key_service_pb2, key_service_pb2_grpc
from byok.type.v1 import account_pb2
from metering.domain.accounts import AccountKey, account_id, account_kind
from metering.domain.enums import AccountKind
from metering.domain.errors import AgentAlreadyRegisteredError, DependencyUnavailableError
from metering.ports import AgentBinder
from servicekit.calls import call_deadline
from servicekit.errors import FieldViolation, InvalidArgumentError
from servicekit.wire import error_from_rpc

_ACTOR_DEFAULT: Final = "metering"


class KeyVaultAgentBinder(AgentBinder):
    """Calls KeyService.BindAgent."""

    def __init__(self, channel: grpc.aio.Channel, *, deadline_max: timedelta) -> None:
        """Call over a channel."""
        self._stub = key_service_pb2_grpc.KeyServiceStub(channel)
        self._deadline_max = deadline_max

    @override
    async def bind(self, *, request_id: str, actor: str, agent_id: str, owner_id: str, account: AccountKey) -> int:
        request = key_service_pb2.BindAgentRequest(
            request_id=request_id,
            actor=actor or _ACTOR_DEFAULT,
            agent_id=agent_id,
            owner_id=owner_id,
            account=_account(account),
        )
        try:
            response = await self._stub.BindAgent(request, timeout=call_deadline(self._deadline_max))
        except grpc.aio.AioRpcError as error:
            raise _translated(error, agent_id) from error
        return int(response.binding.authority_index)


def _account(account: AccountKey) -> account_pb2.Account:
    if account_kind(account) is AccountKind.ORGANIZATION:
        return account_pb2.Account(organization_id=account_id(account))
    return account_pb2.Account(owner_id=account_id(account))


def _translated(error: grpc.aio.AioRpcError, agent_id: str) -> Exception:
    remote = error_from_rpc(error)
    if remote.reason == "AGENT_ALREADY_BOUND":
        return AgentAlreadyRegisteredError("The agent is bound to another owner or account.", agent_id=agent_id)
    if remote.code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidArgumentError(
            violations=[FieldViolation(field="agent_id", reason="REFUSED_BY_KEYVAULT", description=remote.message)]
        )
    if remote.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}:
        return DependencyUnavailableError(
            "KeyVault cannot be reached; nothing was registered, retry soon.", dependency="keyvault"
        )
    # Its own fault, or a mistake in how we are wired: neither is the caller's to mend.
    return remote
