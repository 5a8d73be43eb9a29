"""Leaf seals: what tells a leaf that this service wrote from one that somebody put into the database.

The last field of a leaf is a truncated HMAC over all of it that comes before, and over the entry's subject, which the
log keeps in a column of its own. Whoever can write rows can append a leaf, but not its seal; a copied leaf carries its
salt a second time. The seal is checked before a leaf becomes part of a signed tree. After that it is the tree that
holds a leaf in place, and the seal's key may be destroyed.

The index is not sealed: it is assigned under the lock of the log's head, which no client ever holds, and giving the
database the key would let it seal what it likes.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import LEAF_SEAL_BYTES, AuditEntry, decode_leaf, encode_leaf, leaf_key_version
from keyvault.domain.canonical import CanonicalFormError, encode_fields
from keyvault.domain.errors import AuditLogCorruptError
from keyvault.domain.keyring import KeyPurpose, Keyring

if TYPE_CHECKING:
    from collections.abc import Callable

_LABEL: Final = "byok/audit/v1/leaf-seal"
_PREFIX: Final = encode_fields(_LABEL, ())


class LeafSealer:
    """Makes leaves, and checks those that are read back, with the authority key of the ring and a label of its own."""

    def __init__(self, keyring: Callable[[], Keyring]) -> None:
        """Seal with what `keyring` returns: the present snapshot."""
        self._keyring = keyring
        self._ring: Keyring | None = None
        self._version = 0
        self._contexts: dict[int, hmac.HMAC] = {}

    def seal(self, entry: AuditEntry) -> bytes:
        """Return the leaf of `entry` under a fresh salt."""
        self._follow()
        body = encode_leaf(entry, key_version=self._version)[:-LEAF_SEAL_BYTES]
        return body + self._seal_of(body, entry.subject, self._version)

    def check(self, leaf: bytes, *, kind: int, subject: str) -> None:
        """Check that this service wrote `leaf`, for the columns that it stands beside.

        Raises:
            AuditLogCorruptError: it did not, or the columns say something else.
            KekVersionUnavailableError: the key of the seal is unknown here; read the keyring again.
        """
        self._follow()
        try:
            version, leaf_kind = leaf_key_version(leaf)
        except CanonicalFormError:
            raise AuditLogCorruptError("these bytes are no leaf of the audit log", finding="LEAF_FORGED") from None
        body, seal = leaf[:-LEAF_SEAL_BYTES], leaf[-LEAF_SEAL_BYTES:]
        if leaf_kind != kind or not hmac.compare_digest(self._seal_of(body, subject, version), seal):
            raise self._why(leaf, version)

    def _why(self, leaf: bytes, version: int) -> AuditLogCorruptError:
        """Return what is wrong with a leaf that does not fit its columns: they, or the leaf itself."""
        try:
            entry = decode_leaf(leaf)
        except CanonicalFormError:
            return AuditLogCorruptError("these bytes are no leaf of the audit log", finding="LEAF_FORGED")
        body, seal = leaf[:-LEAF_SEAL_BYTES], leaf[-LEAF_SEAL_BYTES:]
        if hmac.compare_digest(self._seal_of(body, entry.subject, version), seal):
            return AuditLogCorruptError("a column says something else than its leaf", finding="COLUMN_DISAGREES")
        return AuditLogCorruptError("a leaf was not written by this service", finding="LEAF_FORGED")

    def _seal_of(self, body: bytes, subject: str, version: int) -> bytes:
        keyed = self._contexts.get(version)
        if keyed is None:
            keyed = self._keyed(version)
        context = keyed.copy()
        # A leaf tells its own length, so leaf and subject cannot blur into each other.
        context.update(body + subject.encode())
        return context.digest()[:LEAF_SEAL_BYTES]

    def _keyed(self, version: int) -> hmac.HMAC:
        """Return what has taken key and prefix: to copy it is a third of beginning anew."""
        context = self._keyring().mac(KeyPurpose.AUTHORITY_MAC, version)
        context.update(_PREFIX)
        self._contexts[version] = context
        return context

    def _follow(self) -> None:
        """Forget what was made of an older snapshot of the ring."""
        ring = self._keyring()
        if ring is not self._ring:
            self._ring = ring
            self._version = ring.primary(KeyPurpose.AUTHORITY_MAC).version
            self._contexts = {}
