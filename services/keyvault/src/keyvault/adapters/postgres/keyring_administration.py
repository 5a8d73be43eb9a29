"""Versions, replicas and backups on Postgres. Each change is one statement with its audit entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast, get_args

from typing_extensions import override

from keyvault.adapters.postgres.authority import request_json
from keyvault.domain.errors import AuditUnavailableError
from keyvault.domain.keyring import KeyPurpose, KeyState
from keyvault.domain.keyring_versions import Backup, KeyringVersion, Replica
from keyvault.ports import ChangeStatus, KeyringAdministration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from keyvault.adapters.postgres.authority import PostgresAuthority
    from keyvault.adapters.postgres.pool import Database
    from keyvault.domain.keyring import KeyringRecord
    from keyvault.domain.leaf_seals import LeafSealer
    from keyvault.domain.requests import RecordedRequest
    from keyvault.ports import KeyringChange, RewrappedRecord

_VERSIONS: Final = """
    SELECT purpose, version, state, root_key_id, create_time, update_time FROM keyring_keys
    WHERE purpose = ANY($1::smallint[]) AND state = ANY($2::smallint[]) ORDER BY purpose, version
"""
_COUNTS: Final = """
    SELECT 1 AS purpose, kek_version AS version, count(*) AS needed FROM agent_ai_key_secrets GROUP BY kek_version
"""
_REPLICAS: Final = """
    SELECT replica_id, release, root_key_ids, proved, last_seen, last_seen > clock_timestamp() - $1::interval AS is_live
    FROM keyring_replicas ORDER BY replica_id
"""
_REPORT: Final = """
    INSERT INTO keyring_replicas (replica_id, release, root_key_ids, proved, last_seen)
    VALUES ($1, $2, $3, $4, clock_timestamp())
    ON CONFLICT (replica_id) DO UPDATE
    SET release = excluded.release, root_key_ids = excluded.root_key_ids, proved = excluded.proved,
        last_seen = excluded.last_seen
"""
_FORGET: Final = "DELETE FROM keyring_replicas WHERE last_seen < clock_timestamp() - $1::interval"
_BACKUPS: Final = """
    SELECT backup_id, snapshot_time, expire_time FROM backups WHERE expire_time > clock_timestamp() ORDER BY expire_time
"""
_STAGE: Final = "SELECT stage_keyring_key($1, $2, $3, $4, $5, $6, $7, $8)"
_PROMOTE: Final = "SELECT promote_keyring_key($1, $2, $3, $4, $5, $6)"
_SET_STATE: Final = "SELECT set_keyring_key_state($1, $2, $3, $4, $5, $6, $7)"
_DESTROY: Final = "SELECT destroy_keyring_key($1, $2, $3, $4, $5, $6)"
_ROTATE_ROOT: Final = "SELECT rotate_root_key($1, $2, $3, $4, $5, $6, $7, $8, $9)"
_PUT_BACKUP: Final = "SELECT put_backup($1, $2, $3, $4, $5, $6)"


class PostgresKeyringAdministration(KeyringAdministration):
    """The keyring of one database as an operator changes it."""

    def __init__(self, database: Database, sealer: LeafSealer, authority: PostgresAuthority) -> None:
        """Work on `database`; `sealer` makes the leaves of the log, `authority` knows the request ids."""
        self._database = database
        self._seal = sealer.seal
        self._authority = authority

    @override
    async def find_request(self, scope: str, request_id: str) -> RecordedRequest | None:
        return await self._authority.find_request(scope, request_id)

    @override
    async def versions(self) -> list[KeyringVersion]:
        return [
            KeyringVersion(
                purpose=KeyPurpose(row["purpose"]),
                version=row["version"],
                state=KeyState(row["state"]),
                root_key_id=row["root_key_id"],
                create_time=row["create_time"],
                update_time=row["update_time"],
            )
            for row in await self._database.fetch(_VERSIONS, list(KeyPurpose), list(KeyState))
        ]

    @override
    async def count_rows(self) -> dict[tuple[KeyPurpose, int], int]:
        rows = await self._database.fetch(_COUNTS)
        return {(KeyPurpose(row["purpose"]), row["version"]): row["needed"] for row in rows}

    @override
    async def replicas(self, live: timedelta) -> list[Replica]:
        return [
            Replica(
                replica_id=row["replica_id"],
                release=row["release"],
                root_key_ids=tuple(row["root_key_ids"]),
                proved=frozenset(row["proved"]),
                last_seen=row["last_seen"],
                is_live=row["is_live"],
            )
            for row in await self._database.fetch(_REPLICAS, live)
        ]

    @override
    async def report(
        self, replica_id: str, *, release: str, root_key_ids: Sequence[str], proved: Sequence[str]
    ) -> None:
        await self._database.execute(_REPORT, replica_id, release, list(root_key_ids), list(proved))

    @override
    async def forget_replicas(self, idle: timedelta) -> None:
        await self._database.execute(_FORGET, idle)

    @override
    async def backups(self) -> list[Backup]:
        rows = await self._database.fetch(_BACKUPS)
        return [Backup(row["backup_id"], row["snapshot_time"], row["expire_time"]) for row in rows]

    @override
    async def stage(self, record: KeyringRecord, change: KeyringChange) -> ChangeStatus:
        return await self._change(
            _STAGE,
            int(record.purpose),
            record.version,
            record.root_key_id,
            record.wrapped_key,
            record.canary,
            *self._recorded(change),
        )

    @override
    async def promote(self, purpose: KeyPurpose, version: int, change: KeyringChange, live: timedelta) -> ChangeStatus:
        return await self._change(_PROMOTE, int(purpose), version, live, *self._recorded(change))

    @override
    async def set_state(
        self, purpose: KeyPurpose, version: int, states: tuple[KeyState, KeyState], change: KeyringChange
    ) -> ChangeStatus:
        old, new = states
        return await self._change(_SET_STATE, int(purpose), version, int(old), int(new), *self._recorded(change))

    @override
    async def destroy(
        self, purpose: KeyPurpose, version: int, change: KeyringChange, *, gives_up_backups: bool
    ) -> ChangeStatus:
        return await self._change(_DESTROY, int(purpose), version, gives_up_backups, *self._recorded(change))

    @override
    async def rotate_root(
        self, rewrapped: Sequence[RewrappedRecord], root_key_id: str, change: KeyringChange, live: timedelta
    ) -> ChangeStatus:
        return await self._change(
            _ROTATE_ROOT,
            [int(each.record.purpose) for each in rewrapped],
            [each.record.version for each in rewrapped],
            [each.record.wrapped_key for each in rewrapped],
            [each.wrapped_key for each in rewrapped],
            root_key_id,
            live,
            *self._recorded(change),
        )

    @override
    async def put_backup(self, backup: Backup, change: KeyringChange) -> ChangeStatus:
        return await self._change(
            _PUT_BACKUP, backup.backup_id, backup.snapshot_time, backup.expire_time, *self._recorded(change)
        )

    def _recorded(self, change: KeyringChange) -> tuple[int, bytes, str | None]:
        return int(change.entry.kind), self._seal(change.entry), request_json(change.request)

    async def _change(self, statement: str, *args: object) -> ChangeStatus:
        rows = await self._database.append(statement, *args)
        status: Any = rows[0][0]
        if status not in get_args(ChangeStatus):
            raise AuditUnavailableError("the keyring functions of the database are of another release")
        return cast("ChangeStatus", status)
