"""Registering an agent under the account that pays for it."""

from typing import Final

import msgspec

from metering.domain.accounts import Agent, account_key
from metering.domain.enums import AccountKind
from metering.domain.errors import AgentAlreadyRegisteredError
from metering.domain.limits import default_cost_cap
from metering.domain.principals import Principal, ensure_is_owner, ensure_may_see
from metering.ports import AgentBinder, Directory
from servicekit.clock import Clock

_NEW_ACCOUNTS_ZONE: Final = "UTC"


class AgentRegistration(msgspec.Struct, frozen=True, kw_only=True):
    """Who is to be registered, under whom, and who asks."""

    request_id: str
    acting_for: Principal
    actor: str
    agent_id: str
    owner_id: str
    organization_id: str = ""


class RegisterAgent:
    """Binds the agent in KeyVault first: an agent that is registered can be leased to."""

    def __init__(
        self, *, directory: Directory, binder: AgentBinder, clock: Clock, default_cost_cap_nano_usd: int
    ) -> None:
        """Use ports; a new account gets the default daily cost cap."""
        self._directory = directory
        self._binder = binder
        self._clock = clock
        self._default_cap = default_cost_cap_nano_usd

    async def __call__(self, registration: AgentRegistration) -> Agent:
        """Register an agent; the same again answers the same.

        Raises:
            AgentNotFoundError: The owner is not the principal.
            AccountNotFoundError: The principal is not a member of the organization.
            AgentAlreadyRegisteredError: It belongs to another owner or account.
            PlanLimitReachedError: The account's plan allows no more agents.
            DependencyUnavailableError: KeyVault or Postgres cannot be reached.
        """
        ensure_is_owner(registration.acting_for, registration.owner_id, agent_id=registration.agent_id)
        account = account_key(AccountKind.OWNER, registration.owner_id)
        if registration.organization_id:
            account = account_key(AccountKind.ORGANIZATION, registration.organization_id)
            ensure_may_see(registration.acting_for, account)
        known = await self._directory.find_agent(registration.agent_id)
        if known is not None and (known.owner_id, known.account) != (registration.owner_id, account):
            raise AgentAlreadyRegisteredError(
                "The agent is registered under another owner or account.", agent_id=registration.agent_id
            )
        if known is not None:
            return known
        binding_index = await self._binder.bind(
            request_id=registration.request_id,
            actor=registration.actor,
            agent_id=registration.agent_id,
            owner_id=registration.owner_id,
            account=account,
        )
        agent = Agent(registration.agent_id, registration.owner_id, account, binding_index, self._clock.now())
        cap = default_cost_cap(account, self._default_cap)
        await self._directory.register_agent(agent, cap=cap, time_zone=_NEW_ACCOUNTS_ZONE)
        return await self._directory.find_agent(registration.agent_id) or agent
