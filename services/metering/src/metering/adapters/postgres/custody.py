"""What was witnessed of KeyVault's audit log, in Postgres. Times are Postgres' own."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from typing_extensions import override

from metering.adapters.postgres.connection import Database
from metering.domain.custody import (
    AcceptedRestore,
    Contradiction,
    CustodyRecord,
    CustodyState,
    WitnessedCheckpoint,
)
from metering.ports import CustodyWitnesses

if TYPE_CHECKING:
    from metering.adapters.postgres.connection import Connection

_HISTORY_EVERY: Final = timedelta(minutes=1)
_HISTORY_KEPT: Final = timedelta(days=7)

_KEEP_SUPERSEDED: Final = """
INSERT INTO custody_checkpoints (epoch, size, checkpoint, witness_time)
SELECT epoch, size, checkpoint, witness_time FROM custody_witness
WHERE checkpoint <> '' AND ($1::interval IS NULL OR NOT EXISTS (
    SELECT FROM custody_checkpoints WHERE supersede_time > clock_timestamp() - $1::interval))
"""
_KEEP_RESTORE: Final = """
INSERT INTO custody_restores (epoch, request_id, actor, reason, given_up_size, given_up_checkpoint,
    contradicting_checkpoint, description, rollback_time, accepted_size, accepted_checkpoint)
SELECT epoch + 1, $1, $2, $3, size, checkpoint, contradicting_checkpoint, description, rollback_time, $4, $5
FROM custody_witness
"""
_ACCEPT: Final = """
UPDATE custody_witness SET version = version + 1, epoch = epoch + 1, state = 2, checkpoint = $1, origin = $2, size = $3,
    root = $4, verifier_keys = $5, feed_index = least(feed_index, $3), witness_time = clock_timestamp(),
    confirm_time = clock_timestamp(), contradicting_checkpoint = '', description = '', rollback_time = NULL,
    excused_index = corrupt_index, corrupt_index = 0
"""
_ADVANCE: Final = """
UPDATE custody_witness SET version = version + 1, state = 2, checkpoint = $1, origin = $2, size = $3, root = $4,
    verifier_keys = $5, feed_index = greatest(feed_index, $6), witness_time = clock_timestamp(),
    confirm_time = clock_timestamp()
"""


class PostgresCustodyWitnesses(CustodyWitnesses):
    """One row; whoever changes it names the version that they read, and locks it for that moment."""

    def __init__(self, database: Database) -> None:
        """Use a database."""
        self._database = database

    @override
    async def read(self) -> CustodyRecord:
        async with self._database.connection() as connection:
            (row,) = await connection.fetch("SELECT *, clock_timestamp() - confirm_time AS age FROM custody_witness")
        return _record(row)

    @override
    async def confirm(self, record: CustodyRecord, *, feed_index: int) -> None:
        async with self._database.connection() as connection:
            await connection.execute(
                "UPDATE custody_witness SET confirm_time = clock_timestamp(), feed_index = greatest(feed_index, $2)"
                " WHERE version = $1 AND state = 2",
                record.version,
                feed_index,
            )

    @override
    async def advance(
        self, record: CustodyRecord, seen: WitnessedCheckpoint, *, verifier_keys: tuple[str, ...], feed_index: int
    ) -> bool:
        async with self._database.transaction() as connection:
            if not await _is_still(connection, record):
                return False
            await connection.execute(_KEEP_SUPERSEDED, _HISTORY_EVERY)
            await connection.execute(
                "DELETE FROM custody_checkpoints WHERE supersede_time < clock_timestamp() - $1::interval", _HISTORY_KEPT
            )
            await connection.execute(
                _ADVANCE, seen.note, seen.origin, seen.size, seen.root, list(verifier_keys), feed_index
            )
        return True

    @override
    async def trust(self, record: CustodyRecord, verifier_keys: tuple[str, ...]) -> bool:
        async with self._database.transaction() as connection:
            if not await _is_still(connection, record):
                return False
            await connection.execute(
                "UPDATE custody_witness SET version = version + 1, verifier_keys = $1", list(verifier_keys)
            )
        return True

    @override
    async def contradict(self, record: CustodyRecord, contradiction: Contradiction) -> bool:
        # By epoch, not by version: another replica that has meanwhile seen a log that goes on was shown another log.
        async with self._database.connection() as connection:
            is_changed = await connection.fetchval(
                "UPDATE custody_witness SET version = version + 1, state = 3, contradicting_checkpoint = $2,"
                " description = $3, corrupt_index = $4, rollback_time = clock_timestamp()"
                " WHERE epoch = $1 AND state <> 3 RETURNING true",
                record.epoch,
                contradiction.checkpoint,
                contradiction.description,
                contradiction.corrupt_index,
            )
        return bool(is_changed)

    @override
    async def accept(
        self,
        record: CustodyRecord,
        restore: AcceptedRestore,
        *,
        accepted: WitnessedCheckpoint,
        verifier_keys: tuple[str, ...],
    ) -> bool:
        async with self._database.transaction() as connection:
            if not await _is_still(connection, record):
                return False
            await connection.execute(
                _KEEP_RESTORE,
                UUID(restore.request_id),
                restore.actor,
                restore.reason,
                accepted.size,
                accepted.note,
            )
            await connection.execute(_KEEP_SUPERSEDED, None)
            await connection.execute(
                _ACCEPT, accepted.note, accepted.origin, accepted.size, accepted.root, list(verifier_keys)
            )
        return True

    @override
    async def is_accepted(self, request_id: str) -> bool:
        async with self._database.connection() as connection:
            return bool(
                await connection.fetchval("SELECT true FROM custody_restores WHERE request_id = $1", UUID(request_id))
            )


async def _is_still(connection: "Connection", record: CustodyRecord) -> bool:
    return bool(
        await connection.fetchval("SELECT true FROM custody_witness WHERE version = $1 FOR UPDATE", record.version)
    )


def _record(row: Any) -> CustodyRecord:
    state = CustodyState(row["state"])
    held = None
    if row["checkpoint"]:
        held = WitnessedCheckpoint(row["checkpoint"], row["origin"], row["size"], row["root"])
    contradiction = None
    if state is CustodyState.ROLLED_BACK:
        contradiction = Contradiction(row["contradicting_checkpoint"], row["description"], row["corrupt_index"])
    return CustodyRecord(
        version=row["version"],
        epoch=row["epoch"],
        state=state,
        held=held,
        verifier_keys=tuple(row["verifier_keys"]),
        feed_index=row["feed_index"],
        witness_time=row["witness_time"],
        age=row["age"],
        contradiction=contradiction,
        rollback_time=row["rollback_time"],
        excused_index=row["excused_index"],
    )
