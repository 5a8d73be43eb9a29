"""RevokeKey: ends a key for good, and answers when no Router can start a call on it any more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import EntryKind
from keyvault.domain.new_keys import check_text
from keyvault.domain.provider_keys import KeyState, StoredKey
from keyvault.domain.requests import request_body
from keyvault.usecases.change_provider_keys import Asker, ProviderKeys, key_entry
from servicekit.ids import check_request_id

if TYPE_CHECKING:
    from datetime import timedelta

    from keyvault.ports import PutResult, WatcherRegistry
    from servicekit.clock import Clock

RPC: Final = "RevokeKey"
REASON_CHARACTERS_MAX: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """What is asked for."""

    request_id: str
    asker: Asker
    provider_key_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedKey:
    """The revoked key, and how the Routers that could have used it were stopped."""

    stored: StoredKey
    acknowledged_watchers: int
    expired_watchers: int


class AwaitWatchers:
    """Waits until no watcher can use what was leased before a change."""

    def __init__(self, watchers: WatcherRegistry, *, clock: Clock, poll: timedelta) -> None:
        """Ask `watchers` every `poll`."""
        self._watchers = watchers
        self._clock = clock
        self._poll = poll

    async def __call__(self, audit_index: int) -> tuple[int, int]:
        """Return how many watchers acknowledged, and how many had to run out of time.

        It ends by itself: a watcher's time is bounded, and whoever asks for an echo is first told of the change.
        """
        pending = waited_for = await self._watchers.pending(audit_index)
        while pending:
            await self._clock.sleep(self._poll)
            pending = await self._watchers.pending(audit_index)
            waited_for |= pending
        acknowledged = await self._watchers.acknowledged(audit_index)
        return len(acknowledged), len(waited_for - acknowledged)


class RevokeProviderKey:
    """Revokes a provider key; its secret is not kept."""

    def __init__(self, *, keys: ProviderKeys, await_watchers: AwaitWatchers, clock: Clock) -> None:
        """Revoke through `keys`."""
        self._keys = keys
        self._await_watchers = await_watchers
        self._clock = clock

    async def __call__(self, asked: Revocation) -> RevokedKey:
        """Return the key, REVOKED, after every connected watcher acknowledged or its bound has passed.

        A caller whose deadline ends first may repeat the request: the revocation stands, and only the waiting is
        repeated.

        Raises:
            InvalidArgumentError: naming the field that does not fit.
            RequestIdReusedError: the request id was used with another body.
            ProviderKeyNotFoundError: there is no such key, or it is another owner's.
            AuditUnavailableError: it is not known to be durable.
        """
        now = self._clock.now()
        check_request_id(asked.request_id, now)
        reason = check_text("reason", asked.reason, characters_max=REASON_CHARACTERS_MAX)
        fields = (asked.provider_key_id, asked.reason)
        body = request_body(RPC, asked.asker.acting_for.key, asked.request_id, fields)

        async def attempt() -> StoredKey | PutResult:
            present = await self._keys.owned(asked.provider_key_id, asked.asker.acting_for)
            if present.key.state is KeyState.REVOKED:
                return present
            key = replace(
                present.key, state=KeyState.REVOKED, state_reason=reason or "Revoked by its owner.", update_time=now
            )
            details = (("reason", reason), ("request_id", asked.request_id))
            return await self._keys.write(
                key,
                expected_index=present.seal.audit_index,
                entry=key_entry(EntryKind.KEY_REVOKED, key, asker=asked.asker, now=now, details=details),
                request=self._keys.identity(body),
            )

        stored = await self._keys.replayed(body) or await self._keys.settle(body, attempt)
        acknowledged, expired = await self._await_watchers(stored.seal.audit_index)
        return RevokedKey(stored=stored, acknowledged_watchers=acknowledged, expired_watchers=expired)
