"""HMACs over authority rows: what may be leased, and to whom.

A row's HMAC covers all of its fields, its HMAC key version, and the index of the audit entry that wrote it. So a row
that was forged, edited or copied to another place in the log is refused when it is read. A whole older row that is put
back in place of a newer one is valid in itself: that is found by comparing row and log, not here.

The index is not known before the log's head is locked, and the lock is never held by a client. Hence `AuthorityWindow`:
the HMACs for the next few indexes are computed in advance, the append function picks the one of the index that it
assigns, and a log that moved past the window costs one retry with a wider one. The alternative, giving the database
what it needs to compute HMACs itself, would let the database forge rows.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain.errors import AuthorityForgedError
from keyvault.domain.keyring import KeyPurpose

if TYPE_CHECKING:
    from keyvault.domain.keyring import Keyring

MAC_BYTES: Final = 32
_INDEX: Final = struct.Struct(">q")


@dataclass(frozen=True, slots=True)
class RowSeal:
    """What authenticates one authority row: the audit index that wrote it, the HMAC and its key's version."""

    audit_index: int
    mac_key_version: int
    mac: bytes


@dataclass(frozen=True, slots=True)
class AuthorityWindow:
    """HMACs of one row for a run of consecutive audit indexes, `first_index` onward."""

    first_index: int
    mac_key_version: int
    macs: tuple[bytes, ...]

    def seal_at(self, audit_index: int) -> RowSeal | None:
        """Return the seal for `audit_index`, or None when the window does not reach it."""
        offset = audit_index - self.first_index
        if not 0 <= offset < len(self.macs):
            return None
        return RowSeal(audit_index, self.mac_key_version, self.macs[offset])


def seal_window(keyring: Keyring, record: bytes, *, first_index: int, length: int) -> AuthorityWindow:
    """Return the HMACs of the row with this canonical record, for `length` audit indexes from `first_index`."""
    version = keyring.primary(KeyPurpose.AUTHORITY_MAC).version
    context = _row_context(keyring, record, version)
    macs = []
    for audit_index in range(first_index, first_index + length):
        at_index = context.copy()
        at_index.update(_INDEX.pack(audit_index))
        macs.append(at_index.digest())
    return AuthorityWindow(first_index, version, tuple(macs))


def verify_row(keyring: Keyring, record: bytes, *, seal: RowSeal, row_id: str) -> None:
    """Raise AuthorityForgedError unless `seal` is this record's own."""
    context = _row_context(keyring, record, seal.mac_key_version)
    context.update(_INDEX.pack(seal.audit_index))
    if not hmac.compare_digest(context.digest(), seal.mac):
        message = "an authority row fails authentication; nothing is leased by it until an operator has looked at it"
        raise AuthorityForgedError(message, row_id=row_id, audit_index=seal.audit_index)


def _row_context(keyring: Keyring, record: bytes, mac_key_version: int) -> hmac.HMAC:
    # The record carries its own label and lengths, and what surrounds it has a fixed length, so no two rows blur.
    context = keyring.mac(KeyPurpose.AUTHORITY_MAC, mac_key_version)
    context.update(_INDEX.pack(mac_key_version))
    context.update(record)
    return context
