"""ListHalts: what is halted, as far as the principal may know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyvault.domain.halts import HaltKind, HaltScope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyvault.domain.halts import Halt
    from keyvault.domain.ownership import Principal
    from keyvault.usecases.present_halts import PresentHalts


class ListHalts:
    """Lists the halts in force, oldest first."""

    def __init__(self, halts: PresentHalts) -> None:
        """Read `halts`."""
        self._halts = halts

    async def __call__(self, acting_for: Principal) -> Sequence[Halt]:
        """Return all halts for an operator; for an owner, those that they made, and those of themselves.

        Raises:
            AuthorityForgedError: the set was not written by this service as it stands.
        """
        halts = (await self._halts.read()).halts.halts
        if acting_for.operator_id:
            return halts
        own = HaltScope(HaltKind.OWNER, acting_for.owner_id)
        return [halt for halt in halts if halt.owner_id == acting_for.owner_id or halt.scope == own]
