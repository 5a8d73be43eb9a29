"""AccountService: agents and the accounts that pay for them, and what was witnessed of KeyVault's audit log."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog
from typing_extensions import override

from byok.metering.v1 import account_service_pb2, account_service_pb2_grpc
from metering.api.custody_mapping import accepted_restore, custody_witness
from metering.api.fields import account_from, account_to, principal_from, time_to
from metering.api.page_tokens import page_size, page_token, position_of
from metering.api.replays import Replays
from metering.domain.accounts import Agent, check_identifier
from metering.domain.principals import Principal
from metering.usecases.accept_custody_restore import AcceptCustodyRestore, GetCustodyWitness
from metering.usecases.read_accounts import AccountView, GetAccount, GetAgent, ListAgents
from metering.usecases.register_agent import AgentRegistration, RegisterAgent
from servicekit.identity import current_caller

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

_log: Final = structlog.get_logger("metering.custody")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountUseCases:
    """What the service does."""

    register: RegisterAgent
    get_agent: GetAgent
    list_agents: ListAgents
    get_account: GetAccount
    get_custody_witness: GetCustodyWitness
    accept_custody_restore: AcceptCustodyRestore


class AccountServicer(account_service_pb2_grpc.AccountServiceServicer):
    """Takes calls, asks use cases, answers."""

    def __init__(self, usecases: AccountUseCases, replays: Replays) -> None:
        """Serve use cases."""
        self._do = usecases
        self._replays = replays

    @override
    async def RegisterAgent(
        self, request: account_service_pb2.RegisterAgentRequest, context: "Context"
    ) -> account_service_pb2.RegisterAgentResponse:
        principal = principal_from(request.acting_for, current_caller())
        registration = _registration(request, principal)

        async def run() -> account_service_pb2.RegisterAgentResponse:
            agent = await self._do.register(registration)
            return account_service_pb2.RegisterAgentResponse(agent=_agent(agent))

        return await self._replays(
            "RegisterAgent",
            request,
            principal,
            request_id=request.request_id,
            kind=account_service_pb2.RegisterAgentResponse,
            run=run,
        )

    @override
    async def GetAgent(
        self, request: account_service_pb2.GetAgentRequest, context: "Context"
    ) -> account_service_pb2.GetAgentResponse:
        principal = principal_from(request.acting_for, current_caller())
        check_identifier(request.agent_id, "agent_id")
        return account_service_pb2.GetAgentResponse(agent=_agent(await self._do.get_agent(request.agent_id, principal)))

    @override
    async def ListAgents(
        self, request: account_service_pb2.ListAgentsRequest, context: "Context"
    ) -> account_service_pb2.ListAgentsResponse:
        principal = principal_from(request.acting_for, current_caller())
        count = page_size(request.page_size)
        bound_to = ("ListAgents", principal.owner_id)
        after = position_of(request.page_token, *bound_to)
        agents = await self._do.list_agents(principal, after=after, count=count + 1)
        following = page_token(agents[count - 1].agent_id, *bound_to) if len(agents) > count else ""
        return account_service_pb2.ListAgentsResponse(
            agents=[_agent(agent) for agent in agents[:count]], next_page_token=following
        )

    @override
    async def GetAccount(
        self, request: account_service_pb2.GetAccountRequest, context: "Context"
    ) -> account_service_pb2.GetAccountResponse:
        principal = principal_from(request.acting_for, current_caller())
        view = await self._do.get_account(account_from(request.account, "account"), principal)
        return account_service_pb2.GetAccountResponse(account=_details(view))

    @override
    async def GetCustodyWitness(
        self, request: account_service_pb2.GetCustodyWitnessRequest, context: "Context"
    ) -> account_service_pb2.GetCustodyWitnessResponse:
        return account_service_pb2.GetCustodyWitnessResponse(
            witness=custody_witness(await self._do.get_custody_witness())
        )

    @override
    async def AcceptCustodyRestore(
        self, request: account_service_pb2.AcceptCustodyRestoreRequest, context: "Context"
    ) -> account_service_pb2.AcceptCustodyRestoreResponse:
        restore = accepted_restore(request)

        async def run() -> account_service_pb2.AcceptCustodyRestoreResponse:
            record = await self._do.accept_custody_restore(restore)
            _log.warning(
                "custody.restore_accepted",
                actor=restore.actor,
                caller=current_caller().uri,
                reason=restore.reason,
                given_up_size=restore.witnessed_size,
                accepted_size=record.size,
            )
            return account_service_pb2.AcceptCustodyRestoreResponse(witness=custody_witness(record))

        return await self._replays(
            "AcceptCustodyRestore",
            request,
            Principal(operator_id=restore.actor),
            request_id=request.request_id,
            kind=account_service_pb2.AcceptCustodyRestoreResponse,
            run=run,
        )


def _registration(request: account_service_pb2.RegisterAgentRequest, principal: Principal) -> AgentRegistration:
    check_identifier(request.agent_id, "agent_id")
    check_identifier(request.owner_id, "owner_id")
    if request.organization_id:
        check_identifier(request.organization_id, "organization_id")
    return AgentRegistration(
        request_id=request.request_id,
        acting_for=principal,
        actor=request.actor,
        agent_id=request.agent_id,
        owner_id=request.owner_id,
        organization_id=request.organization_id,
    )


def _agent(agent: Agent) -> account_service_pb2.Agent:
    return account_service_pb2.Agent(
        agent_id=agent.agent_id,
        owner_id=agent.owner_id,
        account=account_to(agent.account),
        register_time=time_to(agent.register_time),
        binding_index=agent.binding_index,
    )


def _details(view: AccountView) -> account_service_pb2.AccountDetails:
    return account_service_pb2.AccountDetails(
        account=account_to(view.account.account),
        plan=view.plan.name,
        entitlements=view.plan.entitlements,
        agents=view.agents,
        time_zone=view.account.time_zone,
        create_time=time_to(view.account.create_time),
    )
