"""ShareKey and UnshareKey: which agent of an organization may use which of its keys, for what, and on what terms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.errors import AgentNotFoundError, KekNotPrimaryError, ShareNotFoundError, StaleAuthorityError
from keyvault.domain.new_keys import refused
from keyvault.domain.ownership import Scope, check_identifier
from keyvault.domain.provider_keys import Operation
from keyvault.domain.requests import request_body
from keyvault.domain.shares import KeyShare, ShareCap, StoredShare, check_terms, share_name, share_parties
from keyvault.usecases.change_provider_keys import Asker
from servicekit.ids import check_request_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from keyvault.domain.ownership import Principal
    from keyvault.domain.provider_keys import StoredKey
    from keyvault.domain.requests import RequestBody, RequestIdentity
    from keyvault.ports import KeyringSource, PutResult, ShareStore
    from keyvault.usecases.agent_bindings import AgentBindings
    from keyvault.usecases.change_provider_keys import ProviderKeys
    from keyvault.usecases.revoke_provider_key import AwaitWatchers
    from keyvault.usecases.verify_rows import VerifyRows
    from keyvault.usecases.write_authority import WriteShare
    from servicekit.clock import Clock

SHARE_RPC: Final = "ShareKey"
UNSHARE_RPC: Final = "UnshareKey"
ATTEMPTS_MAX: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NewShare:
    """What ShareKey asks for."""

    request_id: str
    asker: Asker
    provider_key_id: str
    agent_id: str
    operations: tuple[Operation, ...]
    cap: ShareCap


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareEnd:
    """What UnshareKey asks for."""

    request_id: str
    asker: Asker
    provider_key_id: str
    agent_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedShare:
    """The share, ended, and how the Routers that could have used it were stopped."""

    stored: StoredShare
    acknowledged_watchers: int
    expired_watchers: int


class KeyShares:
    """Reads and writes verified shares, each change idempotent by its request id."""

    def __init__(
        self, store: ShareStore, *, keys: ProviderKeys, verify: VerifyRows, write: WriteShare, keyring: KeyringSource
    ) -> None:
        """Work on `store`; `keys` says whose a key is."""
        self._store = store
        self._keys = keys
        self._verify = verify
        self._keyring = keyring
        self.write = write

    async def shareable(self, provider_key_id: str, principal: Principal) -> StoredKey:
        """Return a key of an organization that this principal is asserted to be a member of.

        Raises:
            ProviderKeyNotFoundError: there is no such key, or it is another's.
            InvalidArgumentError: the key is not an organization's.
        """
        stored = await self._keys.owned(provider_key_id, principal)
        if stored.key.holder.scope is not Scope.ORGANIZATION:
            remedy = "Only a key of scope ORGANIZATION is shared; the agents of its owner use any other without."
            raise refused("key_id", "KEY_NOT_SHAREABLE", remedy)
        return stored

    async def present(self, provider_key_id: str, agent_id: str) -> StoredShare | None:
        """Return the share of a key with an agent, also when it ended. Raises AuthorityForgedError."""
        row = await self._store.get_share(provider_key_id, agent_id)
        return None if row is None else await self._verify.share(row)

    async def settle(
        self, body: RequestBody, attempt: Callable[[RequestIdentity], Awaitable[StoredShare | PutResult]]
    ) -> StoredShare:
        """Return what the request id was answered with before, or the first final answer of `attempt`.

        Raises:
            RequestIdReusedError: the request id was used with another body.
            StaleAuthorityError: the share kept changing, or keys were rotated again and again.
        """
        for _ in range(ATTEMPTS_MAX):
            replayed = await self._replayed(body)
            if replayed is not None:
                return replayed
            try:
                result = await attempt(body.identity(self._keyring.current()))
            except KekNotPrimaryError:
                await self._keyring.reload()
                continue
            if isinstance(result, StoredShare):
                return result
        raise StaleAuthorityError("the share changed again and again; retry")

    async def _replayed(self, body: RequestBody) -> StoredShare | None:
        recorded = await self._store.find_request(body.scope, body.request_id)
        if recorded is None:
            return None
        body.ensure_same(self._keyring.current(), recorded)
        row = await self._store.get_share_at(*share_parties(recorded.resource_id), recorded.audit_index)
        if row is None:
            raise ShareNotFoundError("the key is not shared with the agent")
        return await self._verify.share(row)


class ShareKey:
    """Shares a key with an agent, or changes the terms."""

    def __init__(self, *, shares: KeyShares, agents: AgentBindings, clock: Clock) -> None:
        """Write through `shares`."""
        self._shares = shares
        self._agents = agents
        self._clock = clock

    async def __call__(self, asked: NewShare) -> StoredShare:
        """Return the share as it stands.

        Raises:
            InvalidArgumentError: naming every field that does not fit.
            RequestIdReusedError: the request id was used with another body.
            ProviderKeyNotFoundError: there is no such key, or it is another's.
            ProviderKeyRevokedError: the key is revoked.
            AgentNotFoundError: the agent's account is not the organization.
            AuditUnavailableError: it is not known to be durable.
        """
        now = self._clock.now()
        check_request_id(asked.request_id, now)
        check_identifier("agent_id", asked.agent_id)
        operations = check_terms(asked.operations, asked.cap)
        await self._shares.shareable(asked.provider_key_id, asked.asker.acting_for)

        async def attempt(request: RequestIdentity) -> StoredShare | PutResult:
            key = await self._shares.shareable(asked.provider_key_id, asked.asker.acting_for)
            key.key.ensure_not_revoked()
            await self._ensure_of_organization(asked.agent_id, key)
            present = await self._shares.present(asked.provider_key_id, asked.agent_id)
            share = _shared(asked, key, operations, present, now)
            if present is not None and share == present.share:
                return present
            return await self._shares.write(
                share,
                expected_index=0 if present is None else present.seal.audit_index,
                entry=_entry(EntryKind.KEY_SHARED, share, key, asked.asker, now, request_id=asked.request_id),
                request=request,
            )

        return await self._shares.settle(_share_body(asked, operations), attempt)

    async def _ensure_of_organization(self, agent_id: str, key: StoredKey) -> None:
        binding = await self._agents.present(agent_id)
        if binding is None or binding.binding.account != key.key.holder.owned_by:
            raise AgentNotFoundError("the agent is not registered, or is not the organization's", agent_id=agent_id)


class UnshareKey:
    """Ends the share of a key with an agent."""

    def __init__(self, *, shares: KeyShares, await_watchers: AwaitWatchers, clock: Clock) -> None:
        """Write through `shares`."""
        self._shares = shares
        self._await_watchers = await_watchers
        self._clock = clock

    async def __call__(self, asked: ShareEnd) -> EndedShare:
        """Return the share, ended, after every connected watcher acknowledged or its bound has passed.

        Raises:
            InvalidArgumentError: naming the field that does not fit.
            RequestIdReusedError: the request id was used with another body.
            ProviderKeyNotFoundError: there is no such key, or it is another's.
            ShareNotFoundError: the key was never shared with the agent.
            AuditUnavailableError: it is not known to be durable.
        """
        now = self._clock.now()
        check_request_id(asked.request_id, now)
        check_identifier("agent_id", asked.agent_id)
        await self._shares.shareable(asked.provider_key_id, asked.asker.acting_for)
        parties = (asked.provider_key_id, asked.agent_id)

        async def attempt(request: RequestIdentity) -> StoredShare | PutResult:
            key = await self._shares.shareable(asked.provider_key_id, asked.asker.acting_for)
            present = await self._shares.present(*parties)
            if present is None:
                message = "the key is not shared with the agent"
                raise ShareNotFoundError(message, provider_key_id=parties[0], agent_id=parties[1])
            if present.share.is_ended:
                return present
            share = replace(present.share, is_ended=True)
            return await self._shares.write(
                share,
                expected_index=present.seal.audit_index,
                entry=_entry(EntryKind.KEY_UNSHARED, share, key, asked.asker, now, request_id=asked.request_id),
                request=request,
            )

        body = request_body(UNSHARE_RPC, asked.asker.acting_for.key, asked.request_id, parties)
        stored = await self._shares.settle(body, attempt)
        acknowledged, expired = await self._await_watchers(stored.seal.audit_index)
        return EndedShare(stored=stored, acknowledged_watchers=acknowledged, expired_watchers=expired)


def _shared(
    asked: NewShare,
    key: StoredKey,
    operations: tuple[Operation, ...],
    present: StoredShare | None,
    now: datetime,
) -> KeyShare:
    is_continued = present is not None and not present.share.is_ended
    return KeyShare(
        provider_key_id=asked.provider_key_id,
        agent_id=asked.agent_id,
        organization_id=key.key.holder.owned_by.party_id,
        operations=operations,
        cap=asked.cap,
        is_ended=False,
        create_time=present.share.create_time if present is not None and is_continued else now,
    )


def _entry(
    kind: EntryKind, share: KeyShare, key: StoredKey, asker: Asker, now: datetime, *, request_id: str
) -> AuditEntry:
    terms = (
        ("operations", ",".join(operation.name for operation in share.operations)),
        ("month_cost_nano_usd", str(share.cap.month_cost_nano_usd)),
        ("day_cost_nano_usd", str(share.cap.day_cost_nano_usd)),
        ("day_calls", str(share.cap.day_calls)),
    )
    return AuditEntry(
        kind=kind,
        time=now,
        caller=asker.caller,
        actor=asker.actor,
        provider_key_id=share.provider_key_id,
        key_version=key.key.key_version,
        key_state=int(key.key.state),
        agent_id=share.agent_id,
        account=key.key.holder.owned_by,
        details=(
            ("share", share_name(share.provider_key_id, share.agent_id)),
            ("acting_for", asker.acting_for.key),
            ("request_id", request_id),
            *(terms if kind is EntryKind.KEY_SHARED else ()),
        ),
    )


def _share_body(asked: NewShare, operations: tuple[Operation, ...]) -> RequestBody:
    return request_body(
        SHARE_RPC,
        asked.asker.acting_for.key,
        asked.request_id,
        (
            asked.provider_key_id,
            asked.agent_id,
            ",".join(operation.name for operation in operations),
            asked.cap.month_cost_nano_usd,
            asked.cap.day_cost_nano_usd,
            asked.cap.day_calls,
        ),
    )
