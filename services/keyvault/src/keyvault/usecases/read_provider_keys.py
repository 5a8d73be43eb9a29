"""GetKey and ListKeys: what an owner sees of the keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyvault.domain.ownership import Principal, check_identifier
from keyvault.domain.provider_keys import StoredKey
from keyvault.ports import KeyFilter
from keyvault.usecases.pages import page_size, read_token, write_token

if TYPE_CHECKING:
    from keyvault.domain.canonical import Field
    from keyvault.ports import ProviderKeyStore
    from keyvault.usecases.agent_bindings import AgentBindings
    from keyvault.usecases.change_provider_keys import ProviderKeys
    from keyvault.usecases.verify_rows import VerifyRows


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyListing:
    """Which keys are asked for."""

    acting_for: Principal
    agent_id: str
    provider: str
    include_revoked: bool
    page_size: int
    page_token: str
    organization_id: str = ""

    @property
    def filter_fields(self) -> tuple[Field, ...]:
        """Return what a page token is bound to."""
        return (self.acting_for.key, self.organization_id, self.agent_id, self.provider, int(self.include_revoked))


@dataclass(frozen=True, slots=True)
class KeyPage:
    """One page of keys; the token is empty on the last one."""

    keys: tuple[StoredKey, ...]
    next_page_token: str


class GetProviderKey:
    """Reads one key of a principal."""

    def __init__(self, keys: ProviderKeys) -> None:
        """Read through `keys`."""
        self._keys = keys

    async def __call__(self, provider_key_id: str, acting_for: Principal) -> StoredKey:
        """Return the key. Raises ProviderKeyNotFoundError, also for another owner's key."""
        return await self._keys.owned(provider_key_id, acting_for)


class ListProviderKeys:
    """Lists the keys of a principal, newest last."""

    def __init__(self, *, store: ProviderKeyStore, agents: AgentBindings, verify: VerifyRows) -> None:
        """Read `store`."""
        self._store = store
        self._agents = agents
        self._verify = verify

    async def __call__(self, listing: KeyListing) -> KeyPage:
        """Return one page.

        Raises:
            InvalidArgumentError: the page size, the page token or a filter does not fit.
            AgentNotFoundError: the agent is not registered, or is another owner's.
        """
        size = page_size(listing.page_size)
        after = read_token(listing.page_token, listing.filter_fields)
        if listing.provider:
            check_identifier("provider", listing.provider)
        account = listing.acting_for.acting_account(listing.organization_id)
        if listing.agent_id:
            check_identifier("agent_id", listing.agent_id)
            await self._agents.of_account(listing.agent_id, account)
        rows = await self._store.find(
            KeyFilter(
                account=account,
                agent_id=listing.agent_id,
                provider=listing.provider,
                include_revoked=listing.include_revoked,
                after_key_id=after,
                limit=size + 1,
            )
        )
        keys = [await self._verify.key(row) for row in rows[:size]]
        token = write_token(keys[-1].key.provider_key_id, listing.filter_fields) if len(rows) > size else ""
        return KeyPage(tuple(keys), token)
