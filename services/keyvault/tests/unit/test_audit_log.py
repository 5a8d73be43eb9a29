"""Audit leaves: canonical, salted, and read back as they were written."""

from __future__ import annotations

import hashlib

import pytest

from keyvault.domain.audit_log import AuditEntry, EntryKind, decode_leaf, encode_leaf, leaf_hash
from keyvault.domain.canonical import CanonicalFormError
from keyvault.domain.ownership import Account, AccountKind
from services.keyvault.tests.unit.builders import NOW

ENTRY = AuditEntry(
    kind=EntryKind.KEY_REVOKED,
    time=NOW,
    caller="spiffe://byok.local/ns/byok/sa/edge",
    actor="ada",
    provider_key_id="key-1",
    key_version=3,
    key_state=7,
    agent_id="agent-1",
    account=Account(AccountKind.OWNER, "owner-1"),
    details=(("reason", "leaked"), ("request_id", "r")),
)


@pytest.mark.parametrize("entry", [ENTRY, AuditEntry(kind=EntryKind.CALLER_REFUSED, time=NOW, caller="")])
def test_an_entry_comes_back(entry: AuditEntry) -> None:
    """Decoding a leaf gives the entry."""
    assert decode_leaf(encode_leaf(entry, key_version=1)) == entry


def test_leaves_are_salted() -> None:
    """The same entry never gives the same leaf, so that a hash says nothing once the leaf is forgotten."""
    assert len({encode_leaf(ENTRY, key_version=1) for _ in range(50)}) == 50


def test_a_leaf_is_hashed_as_rfc_6962_says() -> None:
    """The hash of a leaf has the prefix 0x00."""
    assert leaf_hash(b"leaf") == hashlib.sha256(b"\x00leaf").digest()
    assert leaf_hash(b"") == bytes.fromhex("6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d")


def test_bytes_that_are_no_leaf_are_refused() -> None:
    """A cut leaf, an unsalted one and one of an unknown kind are not read."""
    leaf = encode_leaf(ENTRY, key_version=1)
    kind = (EntryKind.KEY_REVOKED).to_bytes(8, "big")
    for bad in (b"", leaf[:-1], leaf + b"\0", leaf.replace(kind, (99).to_bytes(8, "big"), 1)):
        with pytest.raises(CanonicalFormError):
            decode_leaf(bad)


def test_only_changes_of_authority_are_told_to_watchers() -> None:
    """Leases, refusals and corruption are in the log, and concern no cache."""
    told = {kind for kind in EntryKind if AuditEntry(kind=kind, time=NOW, caller="").is_authority_change}
    assert told == {kind for kind in EntryKind if kind <= EntryKind.HALTS_CHANGED}
    assert EntryKind.LEASE_GRANTED not in told
