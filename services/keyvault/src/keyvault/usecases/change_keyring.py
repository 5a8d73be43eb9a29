"""StageKey, PromoteKey, DisableKey, EnableKey, DestroyKey, RegisterBackup, RotateRootKey: the life of the keyring.

Every change is one statement that holds the rows it is about, with its audit entry; what forbids a change is looked at
in that statement, and told here in words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.errors import (
    KeyringStateError,
    KeyringVersionNotFoundError,
    ReplicaNotReadyError,
    StaleAuthorityError,
)
from keyvault.domain.keyring import KeyPurpose, KeyState
from keyvault.domain.keyring_versions import Backup, KeyringVersion, ensure_confirmed, not_ready
from keyvault.domain.new_keys import FieldChecks, refused
from keyvault.domain.ownership import check_identifier
from keyvault.domain.requests import request_body
from keyvault.ports import KeyringChange
from servicekit.ids import check_request_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from keyvault.domain.canonical import Field
    from keyvault.domain.requests import RequestBody
    from keyvault.ports import ChangeStatus, KeyringAdministration, KeyringCustody
    from servicekit.clock import Clock

ATTEMPTS_MAX: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Who asks for a change, and under which request id."""

    request_id: str
    caller: str
    actor: str


@dataclass(frozen=True, slots=True)
class Destruction:
    """What DestroyKey says beside the version."""

    confirmation: str
    is_old_root_key_gone: bool
    gives_up_backups: bool


class ChangeKeyring:
    """Changes the keyring of one deployment."""

    def __init__(self, *, store: KeyringAdministration, custody: KeyringCustody, clock: Clock, live: timedelta) -> None:
        """Change what `store` holds; a replica that was seen within `live` has a say in promotions."""
        self._store = store
        self._custody = custody
        self._clock = clock
        self._live = live

    async def stage(self, change: Change, purpose: KeyPurpose) -> KeyringVersion:
        """Return the staged version of a purpose, made now unless there is one.

        Raises:
            InvalidArgumentError: the request id does not fit.
            RequestIdReusedError: the request id was used with another body.
            RootKeyUnavailableError, RootKeyUnusableError: the root key cannot wrap it.
            AuditUnavailableError: it is not known to be durable.
        """
        body = self._body("StageKey", change, (int(purpose),))
        for _ in range(ATTEMPTS_MAX):
            versions = await self._of(purpose)
            staged = next((each for each in versions if each.state is KeyState.STAGED), None)
            if staged is not None or await self._is_replayed(body):
                return staged or versions[-1]
            number = versions[-1].version + 1
            record = await self._custody.wrap_new(purpose, number)
            entry = self._entry(change, purpose, number, "stage", root_key_id=record.root_key_id)
            if await self._store.stage(record, self._recorded(body, entry)) == "WRITTEN":
                await self._custody.reload()
                return await self._one(purpose, number)
        raise StaleAuthorityError("the keyring changed again and again; list it and retry")

    async def promote(self, change: Change, purpose: KeyPurpose, version: int) -> KeyringVersion:
        """Return the version, PRIMARY.

        Raises:
            KeyringVersionNotFoundError: there is no such version.
            KeyringStateError: it is not staged.
            ReplicaNotReadyError: a live replica has not proved that it can use it.
            RequestIdReusedError, AuditUnavailableError: as `stage`.
        """
        body = self._body("PromoteKey", change, (int(purpose), version))
        present = await self._one(purpose, version)
        if present.state is KeyState.PRIMARY:
            return present
        await self._ensure(present, KeyState.STAGED)
        entry = self._entry(change, purpose, version, "promote")
        status = await self._store.promote(purpose, version, self._recorded(body, entry), self._live)
        if status == "NOT_READY":
            waiting = not_ready(present.tag, await self._store.replicas(self._live))
            raise ReplicaNotReadyError(
                "some replicas have not proved yet that they can use this version; they do within seconds, or are gone",
                replicas=", ".join(waiting),
            )
        return await self._changed(body, status, present)

    async def disable(self, change: Change, purpose: KeyPurpose, version: int) -> KeyringVersion:
        """Return the version, DISABLED. Raises as `promote`; KeyringStateError also while a row needs it."""
        return await self._moved("DisableKey", change, (purpose, version), (KeyState.DECRYPT_ONLY, KeyState.DISABLED))

    async def enable(self, change: Change, purpose: KeyPurpose, version: int) -> KeyringVersion:
        """Return the version, DECRYPT_ONLY. Raises as `promote`; KeyringStateError also when its root key is gone."""
        present = await self._one(purpose, version)
        if present.root_key_id not in await self._custody.prove_roots():
            raise KeyringStateError(
                "the root key that wraps this version is not set; no replica could use it",
                version=version,
                state=present.state.name,
            )
        return await self._moved("EnableKey", change, (purpose, version), (KeyState.DISABLED, KeyState.DECRYPT_ONLY))

    async def destroy(self, change: Change, purpose: KeyPurpose, version: int, asked: Destruction) -> KeyringVersion:
        """Return the version, DESTROYED.

        Raises:
            KeyringVersionNotFoundError: there is no such version.
            ConfirmationRequiredError: the confirmation is missing, or older than ten minutes.
            KeyringStateError: it is not disabled, or a row, a backup or the root key stands against it.
            RequestIdReusedError, AuditUnavailableError: as `stage`.
        """
        fields = (int(purpose), version, int(asked.is_old_root_key_gone), int(asked.gives_up_backups))
        body = self._body("DestroyKey", change, fields)
        present = await self._one(purpose, version)
        if present.state is KeyState.DESTROYED:
            return present
        await self._ensure(present, KeyState.DISABLED)
        if not asked.is_old_root_key_gone:
            raise refused(
                "old_root_key_is_gone",
                "REQUIRED",
                "Give your word that every copy of the root key that wrapped it is gone: with it, an old backup would "
                "bring the version back.",
            )
        ensure_confirmed(self._custody.current(), present, asked.confirmation, self._clock.now())
        entry = self._entry(change, purpose, version, "destroy", gives_up_backups=str(asked.gives_up_backups).lower())
        status = await self._store.destroy(
            purpose, version, self._recorded(body, entry), gives_up_backups=asked.gives_up_backups
        )
        return await self._changed(body, status, present)

    async def put_backup(self, change: Change, backup: Backup) -> Backup:
        """Return the backup, registered. Raises InvalidArgumentError, RequestIdReusedError, AuditUnavailableError."""
        checks = FieldChecks()
        checks.run(lambda: check_identifier("backup.backup_id", backup.backup_id))
        if backup.expire_time <= backup.snapshot_time:
            checks.complain("backup.expire_time", "NOT_AFTER_SNAPSHOT", "Send a time after snapshot_time.")
        checks.conclude()
        times = (backup.snapshot_time.isoformat(), backup.expire_time.isoformat())
        body = self._body("RegisterBackup", change, (backup.backup_id, *times))
        if await self._is_replayed(body):
            return backup
        entry = AuditEntry(
            kind=EntryKind.BACKUP_REGISTERED,
            time=self._clock.now(),
            caller=change.caller,
            actor=change.actor,
            details=(("backup_id", backup.backup_id), ("snapshot_time", times[0]), ("expire_time", times[1])),
        )
        await self._store.put_backup(backup, self._recorded(body, entry))
        return backup

    async def rotate_root(self, change: Change, root_key_id: str) -> int:
        """Wrap the keyring by the next root key, and return how many versions it wraps; 0 when it did so already.

        Raises:
            InvalidArgumentError: it is not the next root key of this process.
            ReplicaNotReadyError: a live replica has not proved that it can use it.
            RootKeyUnavailableError, RootKeyUnusableError: a root key cannot be used.
            RequestIdReusedError, AuditUnavailableError: as `stage`.
        """
        body = self._body("RotateRootKey", change, (root_key_id,))
        if root_key_id == self._custody.root_key_id:
            return 0
        if root_key_id != self._custody.next_root_key_id:
            raise refused(
                "root_key_id", "NOT_THE_NEXT", "Set next_root_key on every replica; ListKeyring tells its id."
            )
        for _ in range(ATTEMPTS_MAX):
            rewrapped = await self._custody.rewrapped(root_key_id)
            entry = AuditEntry(
                kind=EntryKind.ROOT_KEY_ROTATED,
                time=self._clock.now(),
                caller=change.caller,
                actor=change.actor,
                details=(("from", self._custody.root_key_id), ("to", root_key_id), ("versions", str(len(rewrapped)))),
            )
            status = await self._store.rotate_root(rewrapped, root_key_id, self._recorded(body, entry), self._live)
            if status == "NOT_READY":
                replicas = await self._store.replicas(self._live)
                waiting = [
                    each.replica_id for each in replicas if each.is_live and root_key_id not in each.root_key_ids
                ]
                raise ReplicaNotReadyError(
                    "some replicas have not proved that they can use the next root key; set next_root_key on all",
                    replicas=", ".join(waiting),
                )
            if status != "STALE":
                await self._is_replayed(body)
                await self._custody.reload()
                return len(rewrapped)
        raise StaleAuthorityError("the keyring changed again and again; list it and retry")

    async def _moved(
        self, rpc: str, change: Change, named: tuple[KeyPurpose, int], states: tuple[KeyState, KeyState]
    ) -> KeyringVersion:
        purpose, version = named
        body = self._body(rpc, change, (int(purpose), version))
        present = await self._one(purpose, version)
        if present.state is states[1]:
            return present
        await self._ensure(present, states[0])
        entry = self._entry(change, purpose, version, rpc.removesuffix("Key").lower())
        status = await self._store.set_state(purpose, version, states, self._recorded(body, entry))
        return await self._changed(body, status, present)

    async def _changed(self, body: RequestBody, status: ChangeStatus, before: KeyringVersion) -> KeyringVersion:
        if status == "REPLAYED":
            await self._is_replayed(body)
        facts: dict[str, str | int] = {"version": before.version, "state": before.state.name}
        if status == "STALE":
            raise KeyringStateError("the version changed meanwhile; list the keyring and look again", **facts)
        if status in _WHY_NOT:
            raise KeyringStateError(_WHY_NOT[status], **facts)
        await self._custody.reload()
        return await self._one(before.purpose, before.version)

    async def _ensure(self, present: KeyringVersion, wanted: KeyState) -> None:
        if present.state is not wanted:
            message = f"the version is {present.state.name}; this takes one that is {wanted.name}"
            raise KeyringStateError(message, version=present.version, state=present.state.name)

    async def _of(self, purpose: KeyPurpose) -> list[KeyringVersion]:
        return [each for each in await self._store.versions() if each.purpose is purpose]

    async def _one(self, purpose: KeyPurpose, version: int) -> KeyringVersion:
        for each in await self._of(purpose):
            if each.version == version:
                return each
        raise KeyringVersionNotFoundError("the keyring has no such version", purpose=purpose.name, version=version)

    def _body(self, rpc: str, change: Change, fields: Sequence[Field]) -> RequestBody:
        check_request_id(change.request_id, self._clock.now())
        return request_body(rpc, "keyring", change.request_id, fields)

    async def _is_replayed(self, body: RequestBody) -> bool:
        recorded = await self._store.find_request(body.scope, body.request_id)
        if recorded is None:
            return False
        body.ensure_same(self._custody.current(), recorded)
        return True

    def _recorded(self, body: RequestBody, entry: AuditEntry) -> KeyringChange:
        return KeyringChange(entry, body.identity(self._custody.current()))

    def _entry(self, change: Change, purpose: KeyPurpose, version: int, what: str, **facts: str) -> AuditEntry:
        details = {"purpose": purpose.name, "version": str(version), "change": what, **facts}
        return AuditEntry(
            kind=EntryKind.KEYRING_CHANGED,
            time=self._clock.now(),
            caller=change.caller,
            actor=change.actor,
            details=tuple(details.items()),
        )


_WHY_NOT: Final[dict[str, str]] = {
    "NEEDED": "rows need this version still: rewrap first; what authenticates rows and the log is needed for good",
    "IN_BACKUPS": "a registered backup of before needs this version, and has not expired; wait, or give up the backups",
    "ROOT_IN_USE": "the root key that wrapped this version wraps the keyring still: rotate the root key first, because "
    "an old backup and that root key would bring the version back",
}
