"""Checks stored entries before they become part of the tree: complete, unedited, written by this service, and new."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import leaf_hash
from keyvault.domain.errors import AuditLogCorruptError, KekVersionUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyvault.domain.leaf_seals import LeafSealer
    from keyvault.ports import KeyringSource, StoredLeaf

REMEMBERED_HASHES: Final = 16_384
"""Newest leaf hashes that are remembered. A leaf that comes again among them was copied: its salt was drawn once."""


class _KeyUnknownError(Exception):
    """A leaf is sealed with a key that this process does not have yet."""

    def __init__(self, audit_index: int) -> None:
        super().__init__("the key of a leaf is unknown")
        self.audit_index = audit_index


class CheckLeaves:
    """The check of one process. `hold` what was signed over, so that a copy of it is told."""

    def __init__(self, sealer: LeafSealer, keyring: KeyringSource, accepted: Mapping[int, bytes]) -> None:
        """Check with `sealer`. `accepted`: hashes that an operator looked at; they pass at their index."""
        self._sealer = sealer
        self._keyring = keyring
        self._accepted = accepted
        self._order: deque[bytes] = deque()
        self._held: set[bytes] = set()

    async def __call__(self, rows: Sequence[StoredLeaf], *, first_index: int, seen: set[bytes]) -> list[bytes]:
        """Return the hashes of entries that follow one another from `first_index`, and add them to `seen`.

        Raises:
            AuditLogCorruptError: an entry is missing, edited, not this service's, or a copy.
        """
        try:
            hashes = self._check(rows, first_index, seen)
        except _KeyUnknownError:
            # Another replica sealed with a key that this one has not read yet.
            await self._keyring.reload()
            hashes = self._checked_again(rows, first_index, seen)
        seen.update(hashes)
        return hashes

    def hold(self, hashes: Sequence[bytes]) -> None:
        """Remember what is part of a signed tree now."""
        self._order.extend(hashes)
        self._held.update(hashes)
        while len(self._order) > REMEMBERED_HASHES:
            self._held.discard(self._order.popleft())

    def _checked_again(self, rows: Sequence[StoredLeaf], first_index: int, seen: set[bytes]) -> list[bytes]:
        try:
            return self._check(rows, first_index, seen)
        except _KeyUnknownError as error:
            raise _bad("a leaf names a key that there is not", "LEAF_FORGED", error.audit_index) from None

    def _check(self, rows: Sequence[StoredLeaf], first_index: int, seen: set[bytes]) -> list[bytes]:
        hashes: dict[bytes, None] = {}
        for audit_index, row in enumerate(rows, start=first_index):
            computed = self._hash_of(row, audit_index)
            if computed in hashes or computed in seen or computed in self._held:
                raise _bad("a leaf stands in the log a second time", "LEAF_FORGED", audit_index)
            hashes[computed] = None
        return list(hashes)

    def _hash_of(self, row: StoredLeaf, audit_index: int) -> bytes:
        if row.audit_index != audit_index:
            raise _bad("an entry is missing", "LEAF_MISSING", audit_index)
        if self._accepted.get(audit_index) == row.leaf_hash:
            return row.leaf_hash
        computed = leaf_hash(row.leaf)
        if computed != row.leaf_hash:
            raise _bad("a leaf does not have the hash that stands beside it", "LEAF_EDITED", audit_index)
        try:
            self._sealer.check(row.leaf, kind=row.kind, subject=row.subject)
        except AuditLogCorruptError as error:
            raise _bad(str(error), str(error.facts["finding"]), audit_index) from None
        except KekVersionUnavailableError:
            raise _KeyUnknownError(audit_index) from None
        return computed


def _bad(message: str, finding: str, audit_index: int) -> AuditLogCorruptError:
    return AuditLogCorruptError(message, finding=finding, audit_index=audit_index)
