"""Reads verified agent bindings for the use cases that depend on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyvault.domain.errors import AgentNotFoundError
from keyvault.domain.ownership import owner_account

if TYPE_CHECKING:
    from keyvault.domain.bindings import StoredBinding
    from keyvault.domain.ownership import Account, Principal
    from keyvault.ports import BindingStore
    from keyvault.usecases.verify_rows import VerifyRows


class AgentBindings:
    """The bindings of agents, authenticated."""

    def __init__(self, bindings: BindingStore, verify: VerifyRows) -> None:
        """Read `bindings`."""
        self._bindings = bindings
        self._verify = verify

    async def present(self, agent_id: str) -> StoredBinding | None:
        """Return the binding of an agent. Raises AuthorityForgedError when its row is not this service's."""
        row = await self._bindings.get_binding(agent_id)
        return None if row is None else await self._verify.binding(row)

    async def of_account(self, agent_id: str, account: Account) -> StoredBinding:
        """Return the binding of an agent that may use keys of this account: its owner's, or its organization's.

        Raises:
            AgentNotFoundError: it is not registered, or is another's.
        """
        stored = await self.present(agent_id)
        if stored is None or account not in (owner_account(stored.binding.owner_id), stored.binding.account):
            raise AgentNotFoundError("the agent is not registered, or is another owner's", agent_id=agent_id)
        return stored

    async def owned(self, agent_id: str, principal: Principal) -> StoredBinding:
        """Return the binding of an agent of this principal.

        Raises:
            AgentNotFoundError: it is not registered, or is another owner's.
        """
        stored = await self.present(agent_id)
        if stored is None or stored.binding.owner_id != principal.owner_id:
            raise AgentNotFoundError("the agent is not registered, or is another owner's", agent_id=agent_id)
        return stored
