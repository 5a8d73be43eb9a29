"""EraseOwner, GetErasure: destroys what opens an owner's keys, revokes them, and says when no backup holds them.

The secrets go first, all in one statement with the entry that says so; then the keys are revoked one after another, as
RevokeKey does. Whatever is left undone by a crash is done when the request is repeated, or by the worker.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.errors import (
    AuthorityForgedError,
    ErasureNotFoundError,
    KekNotPrimaryError,
    StaleAuthorityError,
)
from keyvault.domain.ownership import Principal, owner_account
from keyvault.domain.provider_keys import KeyState, StoredKey
from keyvault.domain.requests import RequestBody, request_body
from keyvault.usecases.change_provider_keys import Asker, key_entry
from servicekit.ids import check_request_id

if TYPE_CHECKING:
    from datetime import datetime

    from keyvault.domain.erasures import Erasure
    from keyvault.ports import ErasureStore, KeyringSource, KeyRow, ProviderKeyStore
    from keyvault.usecases.report_corruption import ReportCorruption
    from keyvault.usecases.revoke_provider_key import AwaitWatchers
    from keyvault.usecases.verify_rows import VerifyRows
    from keyvault.usecases.write_authority import WriteKey
    from servicekit.clock import Clock

RPC: Final = "EraseOwner"
ROUNDS_MAX: Final = 4
BATCH_MAX: Final = 100
REASON: Final = "Erased with all of its owner's keys."


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureRequest:
    """What is asked for."""

    request_id: str
    asker: Asker
    owner_id: str


class RevokeErased:
    """Revokes what an erasure is about, in batches; it may be stopped anywhere and called again."""

    def __init__(
        self,
        *,
        erasures: ErasureStore,
        verify: VerifyRows,
        write: WriteKey,
        keyring: KeyringSource,
        corruption: ReportCorruption,
        clock: Clock,
    ) -> None:
        """Revoke what `erasures` names."""
        self._erasures = erasures
        self._verify = verify
        self._write = write
        self._keyring = keyring
        self._corruption = corruption
        self._clock = clock

    async def __call__(self, erasure: Erasure) -> None:
        """Revoke every key that is not revoked yet, and note that it is done.

        A forged row is reported and left: its secret is gone, and nothing is leased on it.

        Raises:
            StaleAuthorityError: keys kept changing; call it again.
            AuditUnavailableError: a revocation is not known to be durable.
        """
        for _ in range(ROUNDS_MAX):
            if await self._is_through(erasure):
                await self._erasures.finish(erasure, self._clock.now())
                return
        raise StaleAuthorityError("keys of the owner changed again and again; repeat the erasure")

    async def _is_through(self, erasure: Erasure) -> bool:
        is_through, after = True, ""
        while rows := await self._erasures.unrevoked(erasure, after_key_id=after, limit=BATCH_MAX):
            for row in rows:
                is_through &= await self._is_revoked(erasure, row)
            after = rows[-1].found_by.provider_key_id
        return is_through

    async def _is_revoked(self, erasure: Erasure, row: KeyRow) -> bool:
        try:
            present = await self._verify.key(row)
        except AuthorityForgedError as error:
            await self._corruption(row.found_by.provider_key_id, error)
            return True
        now = self._clock.now()
        key = replace(present.key, state=KeyState.REVOKED, state_reason=REASON, state_time=now, update_time=now)
        asker = Asker(caller=erasure.caller, actor=erasure.actor, acting_for=Principal())
        details = (("reason", REASON), ("erasure_index", str(erasure.begin_index)))
        entry = key_entry(EntryKind.KEY_REVOKED, key, asker=asker, now=now, details=details)
        try:
            written = await self._write(key, expected_index=present.seal.audit_index, entry=entry)
        except KekNotPrimaryError:
            await self._keyring.reload()
            return False
        return isinstance(written, StoredKey)


class EraseOwner:
    """Erases an owner."""

    def __init__(
        self,
        *,
        erasures: ErasureStore,
        requests: ProviderKeyStore,
        keyring: KeyringSource,
        revoke: RevokeErased,
        await_watchers: AwaitWatchers,
        clock: Clock,
    ) -> None:
        """Erase through `erasures`."""
        self._erasures = erasures
        self._requests = requests
        self._keyring = keyring
        self._revoke = revoke
        self._await_watchers = await_watchers
        self._clock = clock

    async def __call__(self, asked: ErasureRequest) -> Erasure:
        """Return the erasure when no secret is left, every key is revoked, and no watcher can use one any more.

        A caller whose deadline ends first may repeat the request: what was done stands, and the rest is done.

        Raises:
            InvalidArgumentError: the request id does not fit.
            RequestIdReusedError: the request id was used with another body.
            ErasureNotFoundError: the caller acts for another owner.
            AuditUnavailableError: it is not known to be durable.
        """
        now = self._clock.now()
        check_request_id(asked.request_id, now)
        ensure_may_erase(asked.asker.acting_for, asked.owner_id)
        body = request_body(RPC, asked.asker.acting_for.key, asked.request_id, (asked.owner_id,))
        begin_index = await self._begun(asked, body, now)
        erasure = await self._found(asked.owner_id, begin_index)
        if erasure.finish_time is None:
            await self._revoke(erasure)
            erasure = await self._found(asked.owner_id, begin_index)
        await self._await_watchers(erasure.last_index)
        return erasure

    async def _begun(self, asked: ErasureRequest, body: RequestBody, now: datetime) -> int:
        recorded = await self._requests.find_request(body.scope, body.request_id)
        if recorded is not None:
            body.ensure_same(self._keyring.current(), recorded)
            return recorded.audit_index
        entry = AuditEntry(
            kind=EntryKind.OWNER_ERASED,
            time=now,
            caller=asked.asker.caller,
            actor=asked.asker.actor,
            account=owner_account(asked.owner_id),
            details=(("request_id", asked.request_id),),
        )
        request = body.identity(self._keyring.current())
        return await self._erasures.begin(asked.owner_id, entry=entry, request=request)

    async def _found(self, owner_id: str, begin_index: int) -> Erasure:
        erasure = await self._erasures.get(owner_id, begin_index)
        if erasure is None:
            raise ErasureNotFoundError("no erasure of this owner was asked for")
        return erasure


class GetErasure:
    """Reads how far an erasure has come."""

    def __init__(self, erasures: ErasureStore) -> None:
        """Read `erasures`."""
        self._erasures = erasures

    async def __call__(self, owner_id: str, acting_for: Principal) -> Erasure:
        """Return the last erasure of the owner. Raises ErasureNotFoundError, also for another owner."""
        ensure_may_erase(acting_for, owner_id)
        erasure = await self._erasures.get(owner_id)
        if erasure is None:
            raise ErasureNotFoundError("no erasure of this owner was asked for")
        return erasure


class FinishErasures:
    """Finishes erasures that a crash left half done."""

    def __init__(self, erasures: ErasureStore, revoke: RevokeErased, *, batch_max: int) -> None:
        """Finish what `erasures` says is unfinished."""
        self._erasures = erasures
        self._revoke = revoke
        self._batch_max = batch_max

    async def __call__(self) -> bool:
        """Finish a batch; return whether there may be more. Raises as `RevokeErased` does."""
        unfinished = await self._erasures.unfinished(self._batch_max)
        for erasure in unfinished:
            await self._revoke(erasure)
        return len(unfinished) == self._batch_max


def ensure_may_erase(acting_for: Principal, owner_id: str) -> None:
    """Raise ErasureNotFoundError unless `acting_for` is the owner or an operator: the two are never told apart."""
    if not acting_for.operator_id and acting_for.owner_id != owner_id:
        raise ErasureNotFoundError("no erasure of this owner was asked for")
