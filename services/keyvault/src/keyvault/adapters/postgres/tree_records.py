"""Tiles and checkpoints as they are stored, for whoever verifies them, on Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from typing_extensions import override

from keyvault.ports.verification import TreeRecords
from transparency.tiles import TileId

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from keyvault.adapters.postgres.pool import Database

_TILES: Final = """
    SELECT t.level, t.position, t.hashes, t.root FROM audit_tiles t
    JOIN unnest($1::smallint[], $2::bigint[]) AS asked (level, position) USING (level, position)
"""
_CHECKPOINTS: Final = "SELECT size, note FROM audit_checkpoints WHERE size > $1 ORDER BY size LIMIT $2"


class PostgresTreeRecords(TreeRecords):
    """The records of one database."""

    def __init__(self, database: Database) -> None:
        """Read `database`."""
        self._database = database

    @override
    async def tiles(self, tile_ids: Collection[TileId]) -> Mapping[TileId, tuple[bytes, bytes]]:
        rows = await self._database.fetch(
            _TILES, [each.level for each in tile_ids], [each.position for each in tile_ids]
        )
        return {TileId(row["level"], row["position"]): (row["hashes"], row["root"]) for row in rows}

    @override
    async def checkpoints(self, after_size: int, limit: int) -> Sequence[tuple[int, str]]:
        rows = await self._database.fetch(_CHECKPOINTS, after_size, limit)
        return [(row["size"], row["note"]) for row in rows]
