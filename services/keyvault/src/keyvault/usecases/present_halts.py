"""The set of halts in force, as this process has seen it: read again when its seal changes, and never an older one.

The set is one authority row, made empty at the first start. A log without a set was tampered with: then nothing is
leased until an operator has looked at it. A set that is older than one that was seen here was put back: refused too.
A process that starts anew cannot know; the running self-audit compares the row with the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyvault.domain.errors import AuthorityForgedError
from keyvault.domain.halts import ROW_ID

if TYPE_CHECKING:
    from keyvault.domain.authority import RowSeal
    from keyvault.domain.halts import StoredHalts
    from keyvault.ports import HaltStore
    from keyvault.usecases.verify_rows import VerifyRows


class PresentHalts:
    """Reads the set of halts, authenticated."""

    def __init__(self, store: HaltStore, verify: VerifyRows) -> None:
        """Read `store`."""
        self._store = store
        self._verify = verify
        self._seen: StoredHalts | None = None

    async def read(self) -> StoredHalts:
        """Return the set as it stands now.

        Raises:
            AuthorityForgedError: there is none, or it is not one that this service wrote, or an older one.
            UnavailableError: the store is away.
        """
        # What was seen before the store is asked: meanwhile another call may see a later set than this one gets.
        seen = self._seen
        row = await self._store.get_halts()
        if row is None:
            raise _missing()
        halts = await self._verify.halts(row)
        if seen is not None and halts.seal.audit_index < seen.seal.audit_index:
            message = "an older set of halts was put back; nothing is leased until an operator has looked at it"
            raise AuthorityForgedError(message, row_id=ROW_ID, audit_index=halts.seal.audit_index)
        if self._seen is None or halts.seal.audit_index >= self._seen.seal.audit_index:
            self._seen = halts
        return halts

    async def sealed_by(self, seal: RowSeal | None) -> StoredHalts:
        """Return the set that has this seal; when it is not the one that was seen last, the set as it stands now.

        Raises:
            AuthorityForgedError: as `read` does.
            UnavailableError: the store is away.
        """
        if seal is None:
            raise _missing()
        if self._seen is not None and seal == self._seen.seal:
            return self._seen
        return await self.read()


def _missing() -> AuthorityForgedError:
    message = "there is no set of halts, or more than one; nothing is leased until an operator has looked at it"
    return AuthorityForgedError(message, row_id=ROW_ID, audit_index=0)
