"""Audit entries and their leaves: the canonical, salted bytes that the log keeps and hashes.

An entry says who did what to which key, when and for whom; a secret, a prompt or a header never enters it. A leaf
begins with 16 random bytes: once an owner's leaves are forgotten, their hashes stay in the log and nobody can find out
by trying names what they said. The index of an entry is its position in the log, assigned by the append function, and
is the only sequence there is.

A leaf is the canonical form (`canonical.py`) of these fields under the label `byok/audit/v1/leaf`::

    salt (16 bytes) | version of the seal's key | kind | time (microseconds since 1970) | caller | actor | key id
    | key version | key state | agent id | account kind | account id | name and value of each detail … | seal (16 bytes)

`leaf_seals.py` tells what the seal is; docs/audit-log.md has a vector.
"""

from __future__ import annotations

import enum
import hashlib
import os
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from keyvault.domain.canonical import CanonicalFormError, FieldReader, encode_fields
from keyvault.domain.ownership import Account, AccountKind

_LEAF_LABEL: Final = "byok/audit/v1/leaf"
LEAF_SEAL_BYTES: Final = 16
_SALT_BYTES: Final = 16
_NUMBER_BYTES: Final = 8
_UNSEALED: Final = bytes(LEAF_SEAL_BYTES)
_HEAD: Final = encode_fields(_LEAF_LABEL, ())[:-2]
"""How every leaf begins: its label, before the number of its fields."""
_FIRST_FIELDS_AT: Final = len(_HEAD) + 2
# Salt, version of the seal's key and kind, each after its length: they stand at the same place in every leaf.
_FIRST_FIELDS: Final = struct.Struct(f">I{_SALT_BYTES}xIqIq")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LEAF_PREFIX: Final = b"\x00"
"""RFC 6962, section 2.1: leaves and nodes are hashed under different prefixes."""


class EntryKind(enum.IntEnum):
    """What happened; kinds below `AUTHORITY_KIND_END` change what a lease says. Never renumber."""

    KEY_CREATED = 1
    KEY_UPDATED = 2
    KEY_SECRET_REPLACED = 3
    KEY_REVOKED = 4
    KEY_STATE_CHANGED = 5
    AGENT_BOUND = 6
    KEY_SHARED = 7
    KEY_UNSHARED = 8
    HALTS_CHANGED = 9
    LEASE_GRANTED = 100
    CORRUPTION_FOUND = 101
    CALLER_REFUSED = 102
    KEY_EXPIRING = 103
    KEYRING_CHANGED = 104
    REWRAP_COMPLETED = 105
    ROOT_KEY_ROTATED = 106
    BACKUP_REGISTERED = 107
    OWNER_ERASED = 108
    SEGMENT_ARCHIVED = 109
    LEAVES_FORGOTTEN = 110


AUTHORITY_KIND_END: Final = 100
TOLD_KINDS: Final = frozenset(
    {
        EntryKind.KEY_CREATED,
        EntryKind.KEY_UPDATED,
        EntryKind.KEY_SECRET_REPLACED,
        EntryKind.KEY_REVOKED,
        EntryKind.KEY_STATE_CHANGED,
        EntryKind.KEY_SHARED,
        EntryKind.KEY_UNSHARED,
        EntryKind.HALTS_CHANGED,
        EntryKind.KEY_EXPIRING,
        EntryKind.OWNER_ERASED,
    }
)
"""What owners are told of; the index `audit_entries_told` names the same."""
_KEYRING_KINDS: Final = frozenset(
    {
        EntryKind.KEYRING_CHANGED,
        EntryKind.REWRAP_COMPLETED,
        EntryKind.ROOT_KEY_ROTATED,
        EntryKind.BACKUP_REGISTERED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One thing that happened."""

    kind: EntryKind
    time: datetime
    caller: str
    actor: str = ""
    provider_key_id: str = ""
    key_version: int = 0
    key_state: int = 0
    agent_id: str = ""
    account: Account | None = None
    details: tuple[tuple[str, str], ...] = ()

    @property
    def is_authority_change(self) -> bool:
        """Return whether leases granted before this entry may have ended with it."""
        return self.kind < AUTHORITY_KIND_END

    @property
    def subject(self) -> str:
        """Return what the entry is found by, beside its index: the key that it is about, else the agent, or nothing.

        An entry about halts or the keyring is found as that, whatever it names, and an erasure by its owner.
        """
        if self.kind is EntryKind.HALTS_CHANGED:
            return "halts"
        if self.kind in _KEYRING_KINDS:
            return "keyring"
        if self.kind is EntryKind.OWNER_ERASED and self.account is not None:
            return f"owner/{self.account.party_id}"
        if self.provider_key_id:
            return f"key/{self.provider_key_id}"
        return f"agent/{self.agent_id}" if self.agent_id else ""


@dataclass(frozen=True, slots=True)
class IndexedEntry:
    """An entry at its place in the log."""

    audit_index: int
    entry: AuditEntry


def encode_leaf(entry: AuditEntry, *, key_version: int) -> bytes:
    """Return the leaf of `entry` under a fresh salt, to be sealed under this key: its last 16 bytes are yet zero."""
    account = entry.account
    return encode_fields(
        _LEAF_LABEL,
        (
            os.urandom(_SALT_BYTES),
            key_version,
            int(entry.kind),
            (entry.time - _EPOCH) // timedelta(microseconds=1),
            entry.caller,
            entry.actor,
            entry.provider_key_id,
            entry.key_version,
            entry.key_state,
            entry.agent_id,
            0 if account is None else int(account.kind),
            "" if account is None else account.party_id,
            *(part for detail in entry.details for part in detail),
            _UNSEALED,
        ),
    )


def leaf_key_version(leaf: bytes) -> tuple[int, int]:
    """Return the version of the key that sealed `leaf`, and the number of its kind, without decoding the rest.

    Raises:
        CanonicalFormError: these bytes are not a leaf.
    """
    if leaf.startswith(_HEAD) and len(leaf) >= _FIRST_FIELDS_AT + _FIRST_FIELDS.size + LEAF_SEAL_BYTES:
        salt_length, version_length, version, kind_length, kind = _FIRST_FIELDS.unpack_from(leaf, _FIRST_FIELDS_AT)
        if (salt_length, version_length, kind_length) == (_SALT_BYTES, _NUMBER_BYTES, _NUMBER_BYTES):
            return version, kind
    raise CanonicalFormError("these bytes are not a leaf of the audit log")


def decode_leaf(leaf: bytes) -> AuditEntry:
    """Return the entry in `leaf`.

    Raises:
        CanonicalFormError: these bytes are not a leaf.
    """
    read = FieldReader(_LEAF_LABEL, leaf)
    salt = read.raw()
    read.number()
    try:
        entry = AuditEntry(
            kind=EntryKind(read.number()),
            time=_EPOCH + timedelta(microseconds=read.number()),
            caller=read.text(),
            actor=read.text(),
            provider_key_id=read.text(),
            key_version=read.number(),
            key_state=read.number(),
            agent_id=read.text(),
            account=_decode_account(read),
            details=_decode_details(read),
        )
    except (ValueError, OverflowError) as error:
        message = "these bytes are not a leaf of the audit log"
        raise CanonicalFormError(message) from error
    if len(salt) != _SALT_BYTES:
        message = "the leaf is not salted"
        raise CanonicalFormError(message)
    return entry


def leaf_hash(leaf: bytes) -> bytes:
    """Return the RFC 6962 hash of a leaf; the append function computes the same."""
    return hashlib.sha256(_LEAF_PREFIX + leaf).digest()


def _decode_account(read: FieldReader) -> Account | None:
    kind, party_id = read.number(), read.text()
    return None if kind == 0 else Account(AccountKind(kind), party_id)


def _decode_details(read: FieldReader) -> tuple[tuple[str, str], ...]:
    *rest, seal = read.rest() or [b""]
    if len(seal) != LEAF_SEAL_BYTES:
        raise CanonicalFormError("the leaf is not sealed")
    parts = [part.decode() for part in rest]
    return tuple(zip(parts[::2], parts[1::2], strict=True))
