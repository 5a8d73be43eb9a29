"""GetKey and ListKeys: what an owner sees of the keys."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain.canonical import encode_fields
from keyvault.domain.new_keys import refused
from keyvault.domain.ownership import Principal, check_identifier
from keyvault.domain.provider_keys import StoredKey
from keyvault.ports import KeyFilter

if TYPE_CHECKING:
    from keyvault.ports import ProviderKeyStore
    from keyvault.usecases.agent_bindings import AgentBindings
    from keyvault.usecases.change_provider_keys import ProviderKeys
    from keyvault.usecases.verify_rows import VerifyRows

PAGE_SIZE_DEFAULT: Final = 50
PAGE_SIZE_MAX: Final = 1000
_FILTER_LABEL: Final = "byok/keyvault/v1/list-filter"
_FILTER_HASH_BYTES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyListing:
    """Which keys are asked for."""

    acting_for: Principal
    agent_id: str
    provider: str
    include_revoked: bool
    page_size: int
    page_token: str


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
        size = _page_size(listing.page_size)
        after = _read_token(listing)
        if listing.provider:
            check_identifier("provider", listing.provider)
        if listing.agent_id:
            await self._agents.owned(check_identifier("agent_id", listing.agent_id), listing.acting_for)
        rows = await self._store.find(
            KeyFilter(
                account=listing.acting_for.account,
                agent_id=listing.agent_id,
                provider=listing.provider,
                include_revoked=listing.include_revoked,
                after_key_id=after,
                limit=size + 1,
            )
        )
        keys = [await self._verify.key(row) for row in rows[:size]]
        token = _make_token(listing, keys[-1].key.provider_key_id) if len(rows) > size else ""
        return KeyPage(tuple(keys), token)


def _page_size(asked: int) -> int:
    if asked < 0 or asked > PAGE_SIZE_MAX:
        raise refused(
            "page_size",
            "PAGE_SIZE_OUT_OF_RANGE",
            f"Send 1 to {PAGE_SIZE_MAX}, or leave it out for {PAGE_SIZE_DEFAULT}.",
        )
    return asked or PAGE_SIZE_DEFAULT


def _filter_hash(listing: KeyListing) -> bytes:
    fields = (listing.acting_for.key, listing.agent_id, listing.provider, int(listing.include_revoked))
    return hashlib.sha256(encode_fields(_FILTER_LABEL, fields)).digest()[:_FILTER_HASH_BYTES]


def _make_token(listing: KeyListing, last_key_id: str) -> str:
    return base64.urlsafe_b64encode(_filter_hash(listing) + last_key_id.encode()).decode()


def _read_token(listing: KeyListing) -> str:
    if not listing.page_token:
        return ""
    try:
        token = base64.urlsafe_b64decode(listing.page_token)
        if token[:_FILTER_HASH_BYTES] == _filter_hash(listing):
            return token[_FILTER_HASH_BYTES:].decode("ascii")
    except (binascii.Error, ValueError):
        pass
    raise refused(
        "page_token", "PAGE_TOKEN_INVALID", "Send the token of the page before, with the same filter; or start again."
    )
