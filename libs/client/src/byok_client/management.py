"""Keys, accounts, limits and usage: message in, message out, with a request id, a deadline and safe retries.

Which of them a caller may use is decided by its certificate; `access.toml` of each service says so.
"""

from datetime import timedelta
from typing import Final, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from byok.keyvault.v1 import key_service_pb2 as keys_pb2
from byok.keyvault.v1.key_service_pb2_grpc import KeyServiceStub
from byok.metering.v1 import account_service_pb2 as accounts_pb2
from byok.metering.v1 import limit_service_pb2 as limits_pb2
from byok.metering.v1 import usage_service_pb2 as usage_pb2
from byok.metering.v1.account_service_pb2_grpc import AccountServiceStub
from byok.metering.v1.limit_service_pb2_grpc import LimitServiceStub
from byok.metering.v1.usage_service_pb2_grpc import UsageServiceStub
from byok_client.calling import Calling, UnaryMethod
from byok_client.errors import ByokError
from byok_client.request_ids import new_request_id
from servicekit.wire import RemoteError

MANAGEMENT_DEADLINE: Final = timedelta(seconds=10)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Mutation(Protocol):
    """A request that carries a request id."""

    request_id: str


Change = TypeVar("Change", bound=Mutation)


class ManagementCalls:
    """Makes calls whose failure is a `ByokError`."""

    def __init__(self, calling: Calling, *, deadline: timedelta = MANAGEMENT_DEADLINE) -> None:
        """Give every call `deadline`."""
        self._calling = calling
        self._deadline = deadline

    async def __call__(self, method: UnaryMethod[Request, Response], request: Request) -> Response:
        """Return the answer to `request`.

        Raises:
            ByokError: The service refused, or did not answer.
        """
        try:
            return await self._calling(method, request, deadline=self._deadline)
        except RemoteError as error:
            raise ByokError(error) from None


def identified(request: Change) -> Change:
    """Give `request` a request id, when it has none, and return it."""
    # It stays in the caller's own message, so that their own second call of it is a repetition.
    if not request.request_id:
        request.request_id = new_request_id()
    return request


class Keys:
    """Provider keys of an owner. Roles: edge, operator."""

    def __init__(self, channel: grpc.aio.Channel, call: ManagementCalls) -> None:
        """Use `channel` to KeyVault."""
        self._stub = KeyServiceStub(channel)
        self._call = call

    async def create(self, request: keys_pb2.CreateKeyRequest) -> keys_pb2.CreateKeyResponse:
        """Store a key, sealed."""
        return await self._call(self._stub.CreateKey, identified(request))

    async def get(self, request: keys_pb2.GetKeyRequest) -> keys_pb2.GetKeyResponse:
        """Read a key, without its secret."""
        return await self._call(self._stub.GetKey, request)

    async def list(self, request: keys_pb2.ListKeysRequest) -> keys_pb2.ListKeysResponse:
        """List keys, a page."""
        return await self._call(self._stub.ListKeys, request)

    async def update(self, request: keys_pb2.UpdateKeyRequest) -> keys_pb2.UpdateKeyResponse:
        """Change label, priority, mapping or custody."""
        return await self._call(self._stub.UpdateKey, identified(request))

    async def replace_secret(self, request: keys_pb2.ReplaceKeySecretRequest) -> keys_pb2.ReplaceKeySecretResponse:
        """Put another secret in the place of the old one."""
        return await self._call(self._stub.ReplaceKeySecret, identified(request))

    async def revoke(self, request: keys_pb2.RevokeKeyRequest) -> keys_pb2.RevokeKeyResponse:
        """Revoke a key for good."""
        return await self._call(self._stub.RevokeKey, identified(request))

    async def submission_key(self) -> keys_pb2.GetSubmissionKeyResponse:
        """Read the public key to which a secret may be sealed."""
        return await self._call(self._stub.GetSubmissionKey, keys_pb2.GetSubmissionKeyRequest())


class Accounts:
    """Agents and accounts. Roles: platform, edge, operator."""

    def __init__(self, channel: grpc.aio.Channel, call: ManagementCalls) -> None:
        """Use `channel` to Metering."""
        self._stub = AccountServiceStub(channel)
        self._call = call

    async def register_agent(self, request: accounts_pb2.RegisterAgentRequest) -> accounts_pb2.RegisterAgentResponse:
        """Register an agent under its owner."""
        return await self._call(self._stub.RegisterAgent, identified(request))

    async def get_agent(self, request: accounts_pb2.GetAgentRequest) -> accounts_pb2.GetAgentResponse:
        """Read an agent."""
        return await self._call(self._stub.GetAgent, request)

    async def list_agents(self, request: accounts_pb2.ListAgentsRequest) -> accounts_pb2.ListAgentsResponse:
        """List agents, a page."""
        return await self._call(self._stub.ListAgents, request)

    async def get(self, request: accounts_pb2.GetAccountRequest) -> accounts_pb2.GetAccountResponse:
        """Read an account."""
        return await self._call(self._stub.GetAccount, request)


class Custody:
    """What Metering has witnessed of KeyVault's audit log. Role: operator."""

    def __init__(self, channel: grpc.aio.Channel, call: ManagementCalls) -> None:
        """Use `channel` to Metering."""
        self._stub = AccountServiceStub(channel)
        self._call = call

    async def witness(self) -> accounts_pb2.GetCustodyWitnessResponse:
        """Read it: admission stands still while its state is ROLLED_BACK."""
        return await self._call(self._stub.GetCustodyWitness, accounts_pb2.GetCustodyWitnessRequest())

    async def accept_restore(
        self, request: accounts_pb2.AcceptCustodyRestoreRequest
    ) -> accounts_pb2.AcceptCustodyRestoreResponse:
        """Take the log as it is now, after a deliberate restore, and admit again."""
        return await self._call(self._stub.AcceptCustodyRestore, identified(request))


class Limits:
    """Limits of accounts. Roles: edge, operator."""

    def __init__(self, channel: grpc.aio.Channel, call: ManagementCalls) -> None:
        """Use `channel` to Metering."""
        self._stub = LimitServiceStub(channel)
        self._call = call

    async def set(self, request: limits_pb2.SetLimitRequest) -> limits_pb2.SetLimitResponse:
        """Set a limit, or change its amount."""
        return await self._call(self._stub.SetLimit, identified(request))

    async def remove(self, request: limits_pb2.RemoveLimitRequest) -> limits_pb2.RemoveLimitResponse:
        """Remove a limit."""
        return await self._call(self._stub.RemoveLimit, identified(request))

    async def list(self, request: limits_pb2.ListLimitsRequest) -> limits_pb2.ListLimitsResponse:
        """List limits with what is used of them, a page."""
        return await self._call(self._stub.ListLimits, request)


class Usage:
    """What was spent. Roles: platform, edge, operator."""

    def __init__(self, channel: grpc.aio.Channel, call: ManagementCalls) -> None:
        """Use `channel` to Metering."""
        self._stub = UsageServiceStub(channel)
        self._call = call

    async def summary(self, request: usage_pb2.GetUsageSummaryRequest) -> usage_pb2.GetUsageSummaryResponse:
        """Sum the ledger, with what is held."""
        return await self._call(self._stub.GetUsageSummary, request)

    async def entries(self, request: usage_pb2.ListLedgerEntriesRequest) -> usage_pb2.ListLedgerEntriesResponse:
        """List entries of the ledger, a page."""
        return await self._call(self._stub.ListLedgerEntries, request)
