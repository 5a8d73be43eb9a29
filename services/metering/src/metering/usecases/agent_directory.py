"""Agents, accounts and policy as admission knows them: read from Postgres, remembered for a while.

What is remembered serves on through an outage of Postgres; what is not there is never remembered, so that an agent can
work the moment it is registered.
"""

from collections import OrderedDict
from datetime import timedelta
from typing import Generic, TypeVar

import msgspec

from metering.domain.accounts import PLATFORM, AccountKey, Agent
from metering.domain.errors import AccountNotFoundError, AgentNotFoundError, DependencyUnavailableError
from metering.domain.policy import Policy
from metering.ports import Directory
from servicekit.clock import Clock

Value = TypeVar("Value")


class Remembering(msgspec.Struct, frozen=True, kw_only=True):
    """How much is remembered, and for how long before Postgres is asked again."""

    entries_max: int = 100_000
    fresh: timedelta = timedelta(seconds=30)


class _Memory(Generic[Value]):
    """The most recently used values, each with the time it was read."""

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._entries: OrderedDict[str, tuple[Value, float]] = OrderedDict()

    def get(self, key: str) -> tuple[Value, float] | None:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: str, value: Value, now: float) -> None:
        self._entries[key] = (value, now)
        self._entries.move_to_end(key)
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)


class AgentDirectory:
    """Answers most questions from memory."""

    def __init__(self, directory: Directory, *, clock: Clock, remembering: Remembering | None = None) -> None:
        """Read through to a directory."""
        bounds = remembering or Remembering()
        self._directory = directory
        self._clock = clock
        self._fresh = bounds.fresh.total_seconds()
        self._agents: _Memory[Agent] = _Memory(bounds.entries_max)
        self._accounts: _Memory[bool] = _Memory(bounds.entries_max)
        self._policy: tuple[Policy, float] | None = None

    def known_agent(self, agent_id: str) -> Agent | None:
        """Return an agent if memory has a fresh one: the hot path, which must not wait."""
        found = self._agents.get(agent_id)
        if found is None or self._clock.monotonic() - found[1] >= self._fresh:
            return None
        return found[0]

    async def agent(self, agent_id: str) -> Agent:
        """Return an agent.

        Raises:
            AgentNotFoundError: It is not registered.
            DependencyUnavailableError: Postgres cannot be reached, and memory has no answer.
        """
        fresh = self.known_agent(agent_id)
        if fresh is not None:
            return fresh
        remembered = self._agents.get(agent_id)
        try:
            agent = await self._directory.find_agent(agent_id)
        except DependencyUnavailableError:
            if remembered is None:
                raise
            return remembered[0]
        if agent is None:
            raise AgentNotFoundError("The agent is not registered; register it first.", agent_id=agent_id)
        self._agents.put(agent_id, agent, self._clock.monotonic())
        return agent

    async def ensure_account(self, account: AccountKey) -> None:
        """Check that an account exists. Accounts are never removed, so one that was seen stays known.

        Raises:
            AccountNotFoundError: It does not.
            DependencyUnavailableError: Postgres cannot be reached, and memory has no answer.
        """
        if account == PLATFORM or self._accounts.get(account) is not None:
            return
        if await self._directory.find_account(account) is None:
            raise AccountNotFoundError("There is no such account; register an agent under it first.")
        self._accounts.put(account, value=True, now=self._clock.monotonic())

    async def policy(self) -> Policy:
        """Return what the platform pays for.

        Raises:
            DependencyUnavailableError: Postgres cannot be reached, and memory has no answer.
        """
        remembered = self._policy
        now = self._clock.monotonic()
        if remembered is not None and now - remembered[1] < self._fresh:
            return remembered[0]
        try:
            policy = await self._directory.policy()
        except DependencyUnavailableError:
            if remembered is None:
                raise
            return remembered[0]
        self._policy = (policy, now)
        return policy
