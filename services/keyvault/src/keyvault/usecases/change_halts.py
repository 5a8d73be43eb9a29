"""Halt and Resume: the emergency stop of a scope. Also makes the empty set of halts of a new deployment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.errors import (
    AuthorityForgedError,
    HaltNotFoundError,
    KekNotPrimaryError,
    StaleAuthorityError,
)
from keyvault.domain.halts import Halt, HaltKind, HaltScope, HaltSet, StoredHalts
from keyvault.domain.new_keys import FieldChecks, check_text, refused
from keyvault.domain.ownership import PLATFORM, Account, check_identifier, organization_account, owner_account
from keyvault.domain.requests import request_body
from keyvault.usecases.change_provider_keys import Asker
from servicekit.errors import CallerNotAllowedError
from servicekit.ids import check_request_id, new_uuid7

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from keyvault.domain.requests import RequestBody, RequestIdentity
    from keyvault.ports import HaltStore, KeyringSource, PutResult
    from keyvault.usecases.agent_bindings import AgentBindings
    from keyvault.usecases.present_halts import PresentHalts
    from keyvault.usecases.revoke_provider_key import AwaitWatchers
    from keyvault.usecases.verify_rows import VerifyRows
    from keyvault.usecases.write_authority import WriteHalts
    from servicekit.clock import Clock

HALT_RPC: Final = "Halt"
RESUME_RPC: Final = "Resume"
REASON_CHARACTERS_MAX: Final = 200
ATTEMPTS_MAX: Final = 8
_NAMELESS: Final = frozenset({HaltKind.EVERYTHING, HaltKind.PLATFORM})


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHalt:
    """What Halt asks for."""

    request_id: str
    asker: Asker
    scope: HaltScope
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """What Resume asks for."""

    request_id: str
    asker: Asker
    halt_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeHalt:
    """The halt in force, and how the Routers that it concerns were stopped."""

    halt: Halt
    acknowledged_watchers: int
    expired_watchers: int


class HaltChanges:
    """Changes the set of halts, each change idempotent by its request id."""

    def __init__(
        self,
        store: HaltStore,
        *,
        halts: PresentHalts,
        verify: VerifyRows,
        write: WriteHalts,
        keyring: KeyringSource,
    ) -> None:
        """Work on `store`."""
        self._store = store
        self._halts = halts
        self._verify = verify
        self._keyring = keyring
        self.write = write

    async def settle(
        self,
        body: RequestBody,
        attempt: Callable[[StoredHalts, RequestIdentity], Awaitable[StoredHalts | PutResult | None]],
    ) -> StoredHalts | None:
        """Return the set that the request id was answered with before, or what `attempt` makes of the present set.

        It is None when `attempt` finds that nothing is to be done.

        Raises:
            RequestIdReusedError: the request id was used with another body.
            AuthorityForgedError: the present set was not written by this service as it stands.
            StaleAuthorityError: the set kept changing, or keys were rotated again and again.
        """
        for _ in range(ATTEMPTS_MAX):
            replayed = await self._replayed(body)
            if replayed is not None:
                return replayed
            present = await self._halts.read()
            try:
                result = await attempt(present, body.identity(self._keyring.current()))
            except KekNotPrimaryError:
                await self._keyring.reload()
                continue
            if result is None or isinstance(result, StoredHalts):
                return result
        raise StaleAuthorityError("the halts changed again and again; retry")

    async def _replayed(self, body: RequestBody) -> StoredHalts | None:
        recorded = await self._store.find_request(body.scope, body.request_id)
        if recorded is None:
            return None
        body.ensure_same(self._keyring.current(), recorded)
        row = await self._store.get_halts_at(recorded.audit_index)
        if row is None:
            message = "the set of halts that this request wrote is not there"
            raise AuthorityForgedError(message, audit_index=recorded.audit_index)
        return await self._verify.halts(row)


class MakeFirstHaltSet:
    """Makes the empty set when the deployment is new; never when the log has more than the keyring in it."""

    def __init__(self, store: HaltStore, *, write: WriteHalts, clock: Clock, maker: str) -> None:
        """Write to `store` as `maker`, the name of this service in the log."""
        self._store = store
        self._write = write
        self._clock = clock
        self._maker = maker

    async def __call__(self) -> bool:
        """Return whether there is a set now; False says that the one of a used log is gone.

        Raises:
            UnavailableError: the store is away.
        """
        if await self._store.get_halts() is not None:
            return True
        if not await self._store.is_log_new():
            # The log may have begun since the row was looked for: by another replica, with its set.
            return await self._store.get_halts() is not None
        entry = _entry(self._maker, "", "begin", None, self._clock.now())
        await self._write(HaltSet(), expected_index=0, entry=entry)
        return True


class HaltLeases:
    """Stops leasing in a scope."""

    def __init__(
        self, *, changes: HaltChanges, agents: AgentBindings, await_watchers: AwaitWatchers, clock: Clock
    ) -> None:
        """Change the set through `changes`."""
        self._changes = changes
        self._agents = agents
        self._await_watchers = await_watchers
        self._clock = clock

    async def __call__(self, asked: NewHalt) -> MadeHalt:
        """Return the halt, or the one that stood already, after every watcher acknowledged or its bound has passed.

        Raises:
            InvalidArgumentError: naming every field that does not fit, or there is no room for another halt.
            RequestIdReusedError: the request id was used with another body.
            CallerNotAllowedError: an owner asked for more than their own scope or an agent of theirs.
            AgentNotFoundError: the agent is not registered, or is another owner's.
            AuthorityForgedError: the present set was not written by this service as it stands.
            AuditUnavailableError: it is not known to be durable.
        """
        now = self._clock.now()
        reason = _check(asked, now)
        owner_id = await self._owner_of_scope(asked)
        halt = Halt(
            halt_id=new_uuid7(now),
            scope=asked.scope,
            reason=reason,
            actor=asked.asker.actor,
            owner_id=asked.asker.acting_for.owner_id,
            create_time=now,
        )
        entry = _halt_entry(asked, halt, owner_id, now)
        made: list[Halt] = []

        async def attempt(present: StoredHalts, request: RequestIdentity) -> StoredHalts | PutResult | None:
            made.clear()
            standing = present.halts.standing(halt.scope, is_by_operator=halt.is_by_operator)
            if standing is not None:
                made.append(standing)
                return None
            return await self._changes.write(
                present.halts.with_halt(halt),
                expected_index=present.seal.audit_index,
                entry=entry,
                resource_id=halt.halt_id,
                request=request,
            )

        written = await self._changes.settle(_halt_body(asked), attempt)
        # A set that this request wrote, now or before, has the request's halt as its newest.
        standing = made[0] if written is None else written.halts.halts[-1]
        acknowledged, expired = await self._await_watchers(standing.audit_index)
        return MadeHalt(halt=standing, acknowledged_watchers=acknowledged, expired_watchers=expired)

    async def _owner_of_scope(self, asked: NewHalt) -> str:
        """Return the owner whom the scope concerns, if it is one owner, when the principal may halt it."""
        principal, scope = asked.asker.acting_for, asked.scope
        if scope.kind is HaltKind.AGENT:
            if principal.operator_id:
                binding = await self._agents.present(scope.name)
                return "" if binding is None else binding.binding.owner_id
            return (await self._agents.owned(scope.name, principal)).binding.owner_id
        is_own = scope == HaltScope(HaltKind.OWNER, principal.owner_id)
        if not principal.operator_id and not is_own:
            raise CallerNotAllowedError("an owner may halt themselves or an agent of theirs; the rest is an operator's")
        return scope.name if scope.kind is HaltKind.OWNER else ""


class ResumeLeases:
    """Ends a halt."""

    def __init__(self, *, changes: HaltChanges, clock: Clock) -> None:
        """Change the set through `changes`."""
        self._changes = changes
        self._clock = clock

    async def __call__(self, asked: Resumption) -> int:
        """Return the index of the audit entry that ended the halt.

        Raises:
            InvalidArgumentError: naming the field that does not fit.
            RequestIdReusedError: the request id was used with another body.
            HaltNotFoundError: there is no such halt in force, or it is another owner's.
            CallerNotAllowedError: an operator made it, and an owner asks.
            AuthorityForgedError: the present set was not written by this service as it stands.
            AuditUnavailableError: it is not known to be durable.
        """
        now = self._clock.now()
        check_request_id(asked.request_id, now)
        check_identifier("halt_id", asked.halt_id)
        principal = asked.asker.acting_for

        async def attempt(present: StoredHalts, request: RequestIdentity) -> StoredHalts | PutResult | None:
            halt = present.halts.find(asked.halt_id)
            if halt is None or not (principal.operator_id or _concerns(halt, principal.owner_id)):
                raise HaltNotFoundError("there is no such halt in force", halt_id=asked.halt_id)
            if halt.is_by_operator and not principal.operator_id:
                raise CallerNotAllowedError("an operator made this halt, and only an operator ends it")
            entry = _entry(
                asked.asker.caller,
                asked.asker.actor,
                "resume",
                halt,
                now,
                details=(("acting_for", principal.key), ("request_id", asked.request_id)),
            )
            return await self._changes.write(
                present.halts.without(halt.halt_id),
                expected_index=present.seal.audit_index,
                entry=entry,
                resource_id=halt.halt_id,
                request=request,
            )

        body = request_body(RESUME_RPC, principal.key, asked.request_id, (asked.halt_id,))
        written = await self._changes.settle(body, attempt)
        if written is None:
            raise AssertionError("an attempt that does nothing raises")
        return written.seal.audit_index


def _concerns(halt: Halt, owner_id: str) -> bool:
    # Whether an owner may know of it: their own, and an operator's of themselves.
    return halt.owner_id == owner_id or halt.scope == HaltScope(HaltKind.OWNER, owner_id)


def _check(asked: NewHalt, now: datetime) -> str:
    checks = FieldChecks()
    scope = asked.scope
    checks.run(lambda: check_request_id(asked.request_id, now))
    if scope.kind not in _NAMELESS:
        checks.run(lambda: check_identifier(f"scope.{scope.kind.name.lower()}", scope.name))
    reason = checks.run(lambda: check_text("reason", asked.reason, characters_max=REASON_CHARACTERS_MAX))
    checks.conclude()
    if not reason:
        raise refused("reason", "REQUIRED", "Say why, for those whose content is held.")
    return reason


def _account(scope: HaltScope, owner_id: str) -> Account | None:
    """Return whose leases end, when it is those of one account; None ends all."""
    if owner_id or scope.kind is HaltKind.OWNER:
        return owner_account(owner_id or scope.name)
    if scope.kind is HaltKind.ORGANIZATION:
        return organization_account(scope.name)
    return PLATFORM if scope.kind is HaltKind.PLATFORM else None


def _halt_entry(asked: NewHalt, halt: Halt, owner_id: str, now: datetime) -> AuditEntry:
    return _entry(
        asked.asker.caller,
        asked.asker.actor,
        "halt",
        halt,
        now,
        owner_id=owner_id,
        details=(
            ("reason", halt.reason),
            ("acting_for", asked.asker.acting_for.key),
            ("request_id", asked.request_id),
        ),
    )


def _entry(  # noqa: PLR0913 (what an entry says)
    caller: str,
    actor: str,
    action: str,
    halt: Halt | None,
    now: datetime,
    *,
    owner_id: str = "",
    details: tuple[tuple[str, str], ...] = (),
) -> AuditEntry:
    scope = None if halt is None else halt.scope
    named = () if halt is None else (("halt_id", halt.halt_id), ("scope", halt.scope.label))
    return AuditEntry(
        kind=EntryKind.HALTS_CHANGED,
        time=now,
        caller=caller,
        actor=actor,
        agent_id=scope.name if scope is not None and scope.kind is HaltKind.AGENT else "",
        account=None if scope is None else _account(scope, owner_id),
        details=(("action", action), *named, *details),
    )


def _halt_body(asked: NewHalt) -> RequestBody:
    fields = (int(asked.scope.kind), asked.scope.name, asked.reason)
    return request_body(HALT_RPC, asked.asker.acting_for.key, asked.request_id, fields)
