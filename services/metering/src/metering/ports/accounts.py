"""Accounts, agents, limits, and the answers of mutations."""

from typing import Protocol

from metering.domain.accounts import Account, AccountKey, Agent
from metering.domain.limits import Limit
from metering.domain.plans import Plan
from metering.domain.policy import Policy


class Directory(Protocol):
    """Accounts, agents, plans, policy. Every method raises DependencyUnavailableError."""

    async def find_agent(self, agent_id: str) -> Agent | None:
        """Return an agent."""
        ...

    async def list_agents(self, *, owner_id: str, after: str, count: int) -> list[Agent]:
        """Return agents of an owner by id, those after an id."""
        ...

    async def register_agent(self, agent: Agent, *, cap: Limit | None, time_zone: str) -> None:
        """Write an agent, and its account with its first limit if that is new. The same again changes nothing.

        Raises:
            AgentAlreadyRegisteredError: It is registered under another account or owner.
            PlanLimitReachedError: The account's plan allows no more agents.
        """
        ...

    async def find_account(self, account: AccountKey) -> Account | None:
        """Return an account."""
        ...

    async def count_agents(self, account: AccountKey) -> int:
        """Return how many agents are registered under an account."""
        ...

    async def is_owner_of(self, account: AccountKey, owner_id: str) -> bool:
        """Tell whether an owner has an agent under an account."""
        ...

    async def find_plan(self, name: str) -> Plan:
        """Return a plan."""
        ...

    async def policy(self) -> Policy:
        """Return what the platform pays for."""
        ...


class Limits(Protocol):
    """Limits as they were set. Every method raises DependencyUnavailableError."""

    async def list_limits(self, account: AccountKey) -> list[Limit]:
        """Return all limits of an account."""
        ...

    async def set_limit(self, limit: Limit, *, etag: str) -> Limit:
        """Write a limit under a new config version of its account; the same amount again changes nothing.

        Raises:
            AccountNotFoundError: There is no such account.
            EtagMismatchError: `etag` is set and is not the limit's.
            InvalidArgumentError: The scope has as many limits as one may, or the default cap would stop nothing.
        """
        ...

    async def remove_limit(self, account: AccountKey, limit_id: str) -> int:
        """Remove a limit under a new config version, and return that version.

        Raises:
            LimitNotFoundError: There is none.
        """
        ...

    async def unapplied(self, *, count: int) -> list[AccountKey]:
        """Return accounts whose config version is not known to have reached Redis."""
        ...

    async def mark_applied(self, account: AccountKey, version: int) -> None:
        """Record that Redis has a version."""
        ...


class Requests(Protocol):
    """Answers of mutations by request id. Every method raises DependencyUnavailableError."""

    async def claim(self, rpc: str, scope: str, request_id: str, *, body_hash: bytes) -> tuple[bytes, bytes | None]:
        """Tie the id to a body, unless it is; return the body hash that it is tied to, and the answer if there is one.

        Of two bodies that come at the same moment, one is told the other's hash.
        """
        ...

    async def keep(self, rpc: str, scope: str, request_id: str, *, answer: bytes) -> None:
        """Keep the answer to a claimed request; the first one stands."""
        ...


class AgentBinder(Protocol):
    """KeyVault's bindings of agents."""

    async def bind(self, *, request_id: str, actor: str, agent_id: str, owner_id: str, account: AccountKey) -> int:
        """Bind an agent to its owner and account, and return the authority index. The same again changes nothing.

        Raises:
            AgentAlreadyRegisteredError: It is bound to another owner or account.
            DependencyUnavailableError: KeyVault cannot be reached.
        """
        ...
