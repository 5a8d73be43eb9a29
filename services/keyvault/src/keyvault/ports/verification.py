"""What the full verification of the log reads beside its leaves: tiles and checkpoints as they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from transparency.tiles import TileId


class TreeRecords(Protocol):
    """Tiles and checkpoints, not to be believed. Every method raises UnavailableError when the store is away."""

    async def tiles(self, tile_ids: Collection[TileId]) -> Mapping[TileId, tuple[bytes, bytes]]:
        """Return hashes and root of those of these tiles that are stored."""
        ...

    async def checkpoints(self, after_size: int, limit: int) -> Sequence[tuple[int, str]]:
        """Return size and note of checkpoints of trees that are larger, in their order."""
        ...
