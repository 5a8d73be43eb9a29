"""ListShares: with which agents a key is shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyvault.domain.ownership import Principal, check_identifier
from keyvault.domain.shares import StoredShare
from keyvault.ports import ShareFilter
from keyvault.usecases.pages import page_size, read_token, write_token

if TYPE_CHECKING:
    from keyvault.ports import ShareStore
    from keyvault.usecases.change_shares import KeyShares
    from keyvault.usecases.verify_rows import VerifyRows


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareListing:
    """Which shares are asked for."""

    acting_for: Principal
    provider_key_id: str
    agent_id: str
    page_size: int
    page_token: str

    @property
    def filter_fields(self) -> tuple[str, ...]:
        """Return what a page token is bound to."""
        return (self.acting_for.key, self.provider_key_id, self.agent_id)


@dataclass(frozen=True, slots=True)
class SharePage:
    """One page of shares; the token is empty on the last one."""

    shares: tuple[StoredShare, ...]
    next_page_token: str


class ListShares:
    """Lists the shares of one key that are in force, in the order of their agents' ids."""

    def __init__(self, *, store: ShareStore, shares: KeyShares, verify: VerifyRows) -> None:
        """Read `store`."""
        self._store = store
        self._shares = shares
        self._verify = verify

    async def __call__(self, listing: ShareListing) -> SharePage:
        """Return one page.

        Raises:
            InvalidArgumentError: the page size, the page token or the filter does not fit, or the key cannot be shared.
            ProviderKeyNotFoundError: there is no such key, or it is another's.
        """
        size = page_size(listing.page_size)
        after = read_token(listing.page_token, listing.filter_fields)
        if listing.agent_id:
            check_identifier("agent_id", listing.agent_id)
        await self._shares.shareable(listing.provider_key_id, listing.acting_for)
        rows = await self._store.find_shares(
            ShareFilter(
                provider_key_id=listing.provider_key_id,
                agent_id=listing.agent_id,
                after_agent_id=after,
                limit=size + 1,
            )
        )
        shares = [await self._verify.share(row) for row in rows[:size]]
        token = write_token(shares[-1].share.agent_id, listing.filter_fields) if len(rows) > size else ""
        return SharePage(tuple(shares), token)
