"""How far each partition is durable, read from Postgres, so that any replica can tell it."""

from metering.domain.licences import Watermark
from metering.ports import Ledger


class ListWatermarks:
    """Reads every partition's watermark."""

    def __init__(self, ledger: Ledger) -> None:
        """Use a ledger."""
        self._ledger = ledger

    async def __call__(self) -> list[Watermark]:
        """Return the watermarks of partitions that have a generation.

        Raises:
            DependencyUnavailableError: Postgres cannot be reached.
        """
        return [each for each in await self._ledger.watermarks() if each.generation > 0]
