"""ExportEntries: leaves as they are kept, and a checkpoint that covers them, for whoever verifies them elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain.new_keys import refused
from keyvault.ports import StoredLeaf

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyvault.ports import AuditTree
    from keyvault.usecases.integrate_log import IntegrateLog

PAGE: Final = 256


@dataclass(frozen=True, slots=True)
class ExportPage:
    """Leaves in order; the last page has the checkpoint."""

    leaves: Sequence[StoredLeaf]
    note: str = ""


class ExportEntries:
    """The export of one log."""

    def __init__(self, tree: AuditTree, *, integrate: IntegrateLog) -> None:
        """Read `tree`."""
        self._store = tree
        self._integrate = integrate

    async def __call__(self, first_index: int, last_index: int) -> AsyncIterator[ExportPage]:
        """Yield the entries from one index up to another, 0 for the first and for all that can be signed.

        What is edited or missing is exported as it is: that is what the file is verified for.

        Raises:
            InvalidArgumentError: the log has no such indexes.
            AuditLogCorruptError: the log could not be signed that far.
            UnavailableError: the store is away.
        """
        head = (await self._store.state()).head
        if not 0 <= first_index <= max(head, 1) or not 0 <= last_index <= head:
            raise refused("last_index", "OUT_OF_RANGE", f"The log ends at {head}; send indexes in it, or 0.")
        signed = await (self._integrate.covering(last_index) if last_index else self._integrate.newest())
        up_to = last_index or signed.size
        after = max(first_index - 1, 0)
        while after < up_to:
            leaves = await self._store.read_leaves(after, up_to=min(up_to, after + PAGE), limit=PAGE)
            after = min(up_to, after + PAGE)
            yield ExportPage(leaves)
        yield ExportPage([], signed.note)
