"""Reading agents and accounts."""

import msgspec

from metering.domain.accounts import Account, AccountKey, Agent
from metering.domain.errors import AccountNotFoundError, AgentNotFoundError
from metering.domain.plans import Plan
from metering.domain.principals import Principal, ensure_is_owner, ensure_may_see
from metering.ports import Directory


class AccountView(msgspec.Struct, frozen=True):
    """An account with its plan and how many agents it has."""

    account: Account
    plan: Plan
    agents: int


class GetAgent:
    """Reads one agent."""

    def __init__(self, directory: Directory) -> None:
        """Use a directory."""
        self._directory = directory

    async def __call__(self, agent_id: str, acting_for: Principal) -> Agent:
        """Return an agent.

        Raises:
            AgentNotFoundError: It is not registered, or is another owner's.
        """
        agent = await self._directory.find_agent(agent_id)
        if agent is None:
            raise AgentNotFoundError("There is no such agent of this principal.", agent_id=agent_id)
        ensure_is_owner(acting_for, agent.owner_id, agent_id=agent_id)
        return agent


class ListAgents:
    """Reads an owner's agents."""

    def __init__(self, directory: Directory) -> None:
        """Use a directory."""
        self._directory = directory

    async def __call__(self, acting_for: Principal, *, after: str, count: int) -> list[Agent]:
        """Return agents of the principal by id; an operator's principal owns none."""
        return await self._directory.list_agents(owner_id=acting_for.owner_id, after=after, count=count)


class GetAccount:
    """Reads one account."""

    def __init__(self, directory: Directory) -> None:
        """Use a directory."""
        self._directory = directory

    async def __call__(self, account: AccountKey, acting_for: Principal) -> AccountView:
        """Return an account.

        Raises:
            AccountNotFoundError: It does not exist, or is another's.
        """
        ensure_may_see(acting_for, account)
        found = await self._directory.find_account(account)
        if found is None:
            raise AccountNotFoundError("There is no such account of this principal.")
        plan = await self._directory.find_plan(found.plan)
        return AccountView(found, plan, await self._directory.count_agents(account))
