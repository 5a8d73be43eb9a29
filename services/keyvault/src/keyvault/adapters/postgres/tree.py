"""The tree over the audit log, on Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from typing_extensions import override

from keyvault.ports.tree import AuditTree, LeafFilter, LeafPage, StoredLeaf, TreeState
from transparency.tiles import TILE_WIDTH, TileId

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import timedelta

    import asyncpg

    from keyvault.adapters.postgres.pool import Database
    from transparency.tiles import FullTile

_STATE: Final = """
    SELECT h.last_index,
           coalesce((SELECT max(audit_index) FROM audit_entries), 0) AS last_entry,
           coalesce(c.size, 0) AS size, coalesce(c.note, '') AS note,
           coalesce(clock_timestamp() - c.create_time, interval '0') AS age
    FROM audit_head h
    LEFT JOIN LATERAL (SELECT * FROM audit_checkpoints ORDER BY size DESC LIMIT 1) c ON true
"""
_LEAVES: Final = """
    SELECT audit_index, kind, subject, leaf, leaf_hash FROM audit_entries
    WHERE audit_index > $1 AND audit_index <= $2 ORDER BY audit_index LIMIT $3
"""
# The kinds stand here as they stand in the index, which is used for no others: TOLD_KINDS.
_TOLD: Final = """
    SELECT audit_index, kind, subject, leaf, leaf_hash FROM audit_entries
    WHERE kind IN (1, 2, 3, 4, 5, 7, 8, 9, 103, 108) AND audit_index > $1 AND audit_index <= $2
    ORDER BY audit_index LIMIT $3
"""
# What is read is bounded, not only what is found: an owner who asks for a rare kind must not have all leases read.
_FIND: Final = """
    WITH scanned AS MATERIALIZED (
        SELECT audit_index, kind, subject, leaf, leaf_hash FROM audit_entries
        WHERE {subject} AND {after} ORDER BY audit_index {order} LIMIT $4
    ), found AS (
        SELECT * FROM scanned WHERE cardinality($3::smallint[]) = 0 OR kind = ANY($3)
        ORDER BY audit_index {order} LIMIT $5
    )
    SELECT (SELECT count(*) FROM scanned) AS scanned, (SELECT {last}(audit_index) FROM scanned) AS scanned_to, found.*
    FROM (SELECT) AS one LEFT JOIN found ON true ORDER BY audit_index {order}
"""
_SUBJECTS: Final = {False: "subject = $1", True: "$1::text IS NULL"}
_FORWARD: Final = {"after": "audit_index > $2", "order": "ASC", "last": "max"}
_BACKWARD: Final = {"after": "($2 = 0 OR audit_index < $2)", "order": "DESC", "last": "min"}
_TILES: Final = """
    SELECT t.level, t.position, t.hashes FROM audit_tiles t
    JOIN unnest($1::smallint[], $2::bigint[]) AS asked (level, position) USING (level, position)
"""
_LEAF_EDGE: Final = """
    SELECT leaf_hash AS hash FROM audit_entries WHERE audit_index > $1 AND audit_index <= $2 ORDER BY audit_index
"""
_ROOT_EDGE: Final = """
    SELECT root AS hash FROM audit_tiles WHERE level = $3 AND position >= $1 AND position < $2 ORDER BY position
"""
# A tile that another replica commits meanwhile is neither inserted nor seen: it is compared by the next integration.
_PUT_TILES: Final = """
    WITH given AS (
        SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::bytea[], $4::bytea[])
                      AS g (level, position, hashes, root)
    ), added AS (
        INSERT INTO audit_tiles (level, position, hashes, root) SELECT * FROM given ORDER BY level, position
        ON CONFLICT DO NOTHING
    )
    SELECT level, position FROM given JOIN audit_tiles t USING (level, position)
    WHERE (t.hashes, t.root) <> (given.hashes, given.root)
"""
_PUT_CHECKPOINT: Final = "INSERT INTO audit_checkpoints (size, note) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_CHECKPOINT: Final = "SELECT note FROM audit_checkpoints WHERE size = $1"
_FORGET: Final = """
    DELETE FROM audit_checkpoints WHERE create_time < clock_timestamp() - $1::interval
      AND size < (SELECT max(size) FROM audit_checkpoints)
"""


class PostgresTree(AuditTree):
    """Entries, tiles and checkpoints of one database."""

    def __init__(self, database: Database) -> None:
        """Work on `database`."""
        self._database = database

    @override
    async def state(self) -> TreeState:
        (row,) = await self._database.fetch(_STATE)
        return TreeState(
            head=row["last_index"], last_entry=row["last_entry"], size=row["size"], note=row["note"], age=row["age"]
        )

    @override
    async def read_leaves(self, after: int, *, up_to: int, limit: int) -> list[StoredLeaf]:
        return [_leaf(row) for row in await self._database.fetch(_LEAVES, after, up_to, limit)]

    @override
    async def find_leaves(self, leaf_filter: LeafFilter) -> LeafPage:
        direction = _BACKWARD if leaf_filter.newest_first else _FORWARD
        query = _FIND.format(subject=_SUBJECTS[leaf_filter.subject is None], **direction)
        scan_max = leaf_filter.scan_max if leaf_filter.kinds else leaf_filter.limit
        rows = await self._database.fetch(
            query, leaf_filter.subject, leaf_filter.after, list(leaf_filter.kinds), scan_max, leaf_filter.limit
        )
        leaves = [_leaf(row) for row in rows if row["audit_index"] is not None]
        if len(leaves) == leaf_filter.limit:
            return LeafPage(leaves, leaves[-1].audit_index)
        return LeafPage(leaves, rows[0]["scanned_to"] if rows[0]["scanned"] == scan_max else None)

    @override
    async def read_told(self, after: int, *, up_to: int, limit: int) -> list[StoredLeaf]:
        return [_leaf(row) for row in await self._database.fetch(_TOLD, after, up_to, limit)]

    @override
    async def read_tiles(self, tile_ids: Collection[TileId]) -> Mapping[TileId, bytes]:
        rows = await self._database.fetch(
            _TILES, [each.level for each in tile_ids], [each.position for each in tile_ids]
        )
        return {TileId(row["level"], row["position"]): row["hashes"] for row in rows}

    @override
    async def read_edge(self, tile_id: TileId) -> list[bytes]:
        bounds = (tile_id.position * TILE_WIDTH, (tile_id.position + 1) * TILE_WIDTH)
        if tile_id.level == 0:
            rows = await self._database.fetch(_LEAF_EDGE, *bounds)
        else:
            rows = await self._database.fetch(_ROOT_EDGE, *bounds, tile_id.level - 1)
        return [row["hash"] for row in rows]

    @override
    async def put_tiles(self, tiles: Sequence[FullTile]) -> list[TileId]:
        rows = await self._database.fetch(
            _PUT_TILES,
            [each.tile_id.level for each in tiles],
            [each.tile_id.position for each in tiles],
            [each.hashes for each in tiles],
            [each.root for each in tiles],
        )
        return [TileId(row["level"], row["position"]) for row in rows]

    @override
    async def put_checkpoint(self, size: int, note: str) -> str:
        await self._database.execute(_PUT_CHECKPOINT, size, note)
        return str(await self._database.fetch_value(_CHECKPOINT, size))

    @override
    async def forget_checkpoints(self, age: timedelta) -> None:
        await self._database.execute(_FORGET, age)


def _leaf(row: asyncpg.Record) -> StoredLeaf:
    return StoredLeaf(row["audit_index"], row["kind"], row["subject"], row["leaf"] or b"", row["leaf_hash"])
