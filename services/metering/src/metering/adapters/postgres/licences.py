"""Licences, generations and owners of partitions in Postgres. Times are Postgres' own."""

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from metering.adapters.postgres.connection import Database
from metering.domain.accounts import PARTITIONS
from metering.domain.errors import FencedFlushError
from metering.domain.licences import Licence, StoreIdentity
from metering.ports import Licences, OwnedPartition, StoreState

if TYPE_CHECKING:
    from metering.adapters.postgres.connection import Connection

_FORGOTTEN_AFTER: Final = timedelta(hours=1)


class PostgresLicences(Licences):
    """Whoever renews shares a lock on the store's row; whoever rebuilds takes it alone."""

    def __init__(self, database: Database) -> None:
        """Use a database."""
        self._database = database

    @override
    async def state(self) -> StoreState:
        async with self._database.connection() as connection, connection.transaction(isolation="repeatable_read"):
            row = await connection.fetchrow("SELECT * FROM store")
            generations = await _generations(connection)
        if row is None:
            raise FencedFlushError("the store's row is missing; run the migrations")
        identity = None
        if row["run_id"] is not None:
            identity = StoreIdentity(row["run_id"], row["replication_id"])
        return StoreState(identity, generations, row["epoch"], row["is_rebuilding"])

    @override
    async def renew(self, replica: str, identity: StoreIdentity, *, life_ms: int) -> Licence | None:
        async with self._database.transaction() as connection:
            is_in_force = await connection.fetchval(
                "SELECT true FROM store WHERE run_id = $1 AND replication_id = $2 AND NOT is_rebuilding FOR SHARE",
                identity.run_id,
                identity.replication_id,
            )
            if not is_in_force:
                return None
            await connection.execute(
                "INSERT INTO licences (replica, run_id, replication_id, expire_time)"
                " VALUES ($1, $2, $3, clock_timestamp() + $4)"
                " ON CONFLICT (replica) DO UPDATE SET run_id = excluded.run_id,"
                " replication_id = excluded.replication_id, expire_time = excluded.expire_time",
                replica,
                identity.run_id,
                identity.replication_id,
                timedelta(milliseconds=life_ms),
            )
            return Licence(identity, await _generations(connection))

    @override
    async def give_back(self, replica: str) -> None:
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM licences WHERE replica = $1", replica)
            await connection.execute("DELETE FROM flushers WHERE replica = $1", replica)

    @override
    async def begin_rebuild(self, replica: str, *, epoch: int, life_ms: int) -> bool:
        async with self._database.transaction() as connection:
            taken = await connection.fetchval(
                "UPDATE store SET is_rebuilding = true, rebuilder = $1, rebuild_expire = clock_timestamp() + $3"
                " WHERE epoch = $2 AND (NOT is_rebuilding OR rebuilder = $1 OR rebuild_expire < clock_timestamp())"
                " RETURNING true",
                replica,
                epoch,
                timedelta(milliseconds=life_ms),
            )
        return bool(taken)

    @override
    async def take_all_partitions(self, replica: str) -> list[OwnedPartition]:
        async with self._database.transaction() as connection:
            await _ensure_rebuilder(connection, replica)
            rows = await connection.fetch(
                "UPDATE partitions SET owner = $1, fence = fence + 1 RETURNING partition, generation, fence, sequence",
                replica,
            )
        return [OwnedPartition(*row) for row in rows]

    @override
    async def unexpired(self) -> int:
        async with self._database.connection() as connection:
            return int(await connection.fetchval("SELECT count(*) FROM licences WHERE expire_time > clock_timestamp()"))

    @override
    async def begin_generation(self, replica: str) -> tuple[dict[int, int], dict[int, int]]:
        async with self._database.transaction() as connection:
            await _ensure_rebuilder(connection, replica)
            await connection.execute("UPDATE store SET epoch = epoch + 1")
            rows = await connection.fetch(
                "UPDATE partitions SET generation = generation + 1, sequence = 0, owner = NULL, fence = fence + 1"
                " RETURNING partition, generation, seen_ms"
            )
        generations = {row["partition"]: row["generation"] for row in rows}
        return generations, {row["partition"]: row["seen_ms"] for row in rows}

    @override
    async def end_rebuild(self, replica: str, identity: StoreIdentity) -> None:
        async with self._database.transaction() as connection:
            await _ensure_rebuilder(connection, replica)
            await connection.execute("DELETE FROM licences WHERE expire_time <= clock_timestamp()")
            await connection.execute(
                "UPDATE store SET run_id = $1, replication_id = $2, is_rebuilding = false, rebuilder = NULL,"
                " rebuild_expire = NULL",
                identity.run_id,
                identity.replication_id,
            )

    @override
    async def own_partitions(self, replica: str, *, silent_after: timedelta) -> list[OwnedPartition]:
        async with self._database.transaction() as connection:
            # One at a time, or two replicas would shift partitions back and forth.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('metering.partition_owners'))")
            is_licensed = await connection.fetchval(
                "SELECT true FROM licences WHERE replica = $1 AND expire_time > clock_timestamp()", replica
            )
            if not is_licensed:
                return []
            await connection.execute(
                "INSERT INTO flushers (replica, heartbeat_time) VALUES ($1, clock_timestamp())"
                " ON CONFLICT (replica) DO UPDATE SET heartbeat_time = excluded.heartbeat_time",
                replica,
            )
            await connection.execute(
                "DELETE FROM flushers WHERE heartbeat_time < clock_timestamp() - $1::interval", _FORGOTTEN_AFTER
            )
            live = await connection.fetch(
                "SELECT replica FROM flushers WHERE heartbeat_time > clock_timestamp() - $1::interval", silent_after
            )
            names = sorted(row["replica"] for row in live)
            share = -(-PARTITIONS // len(names))
            await connection.execute(
                "UPDATE partitions SET owner = NULL WHERE partition IN"
                " (SELECT partition FROM partitions WHERE owner = $1 ORDER BY partition OFFSET $2)",
                replica,
                share,
            )
            await connection.execute(
                "UPDATE partitions SET owner = $1, fence = fence + 1 WHERE partition IN"
                " (SELECT partition FROM partitions WHERE owner IS NULL OR NOT owner = ANY($2) ORDER BY partition"
                "  LIMIT greatest(0, $3 - (SELECT count(*) FROM partitions WHERE owner = $1)))",
                replica,
                names,
                share,
            )
            rows = await connection.fetch(
                "SELECT partition, generation, fence, sequence FROM partitions WHERE owner = $1", replica
            )
        return [OwnedPartition(*row) for row in rows]


async def _ensure_rebuilder(connection: "Connection", replica: str) -> None:
    is_mine = await connection.fetchval(
        "SELECT true FROM store WHERE is_rebuilding AND rebuilder = $1 FOR UPDATE", replica
    )
    if not is_mine:
        raise FencedFlushError("another replica has taken the rebuild over")


async def _generations(connection: "Connection") -> tuple[int, ...]:
    rows = await connection.fetch("SELECT generation FROM partitions ORDER BY partition")
    return tuple(row["generation"] for row in rows)
