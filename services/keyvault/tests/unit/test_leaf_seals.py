"""Leaf seals: only what this service wrote passes, beside its own columns, and a vector for other implementations."""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvault.domain.audit_log import LEAF_SEAL_BYTES, AuditEntry, EntryKind, decode_leaf, encode_leaf, leaf_hash
from keyvault.domain.errors import AuditLogCorruptError, KekVersionUnavailableError
from keyvault.domain.keyring import KeyPurpose, Keyring, KeyringKey, KeyState
from keyvault.domain.leaf_seals import LeafSealer
from keyvault.domain.ownership import Account, AccountKind
from servicekit.secrets import Secret
from services.keyvault.tests.unit.builders import NOW, keyring

ENTRY = AuditEntry(
    kind=EntryKind.LEASE_GRANTED,
    time=NOW,
    caller="spiffe://byok.local/ns/byok/sa/router",
    provider_key_id="key-1",
    key_version=3,
    key_state=2,
    agent_id="agent-1",
    account=Account(AccountKind.OWNER, "owner-1"),
    details=(("lease_id", "l"), ("operation", "GUARDRAIL_EVALUATION")),
)
RING = keyring()
SEALER = LeafSealer(lambda: RING)
VECTOR = Path(__file__).resolve().parents[4] / "docs" / "audit-log.md"


def ring_of(*versions: tuple[int, KeyState]) -> Keyring:
    """Return a ring with these versions of the authority key, each with a key of its own."""
    keys = [KeyringKey(KeyPurpose.AUTHORITY_MAC, version, state, Secret(bytes([version]) * 32))
            for version, state in versions]  # fmt: skip
    return Keyring("test", keys, {})


def finding(leaf: bytes, *, kind: int = 100, subject: str = "key/key-1") -> str:
    """Return what is found to be wrong with a leaf."""
    with pytest.raises(AuditLogCorruptError) as caught:
        SEALER.check(leaf, kind=kind, subject=subject)
    return str(caught.value.facts["finding"])


def test_what_was_sealed_passes_and_comes_back() -> None:
    """A sealed leaf decodes to its entry."""
    leaf = SEALER.seal(ENTRY)
    SEALER.check(leaf, kind=100, subject="key/key-1")
    assert decode_leaf(leaf) == ENTRY


def test_every_changed_byte_is_told() -> None:
    """No byte of a leaf can be another; an unsealed leaf and one under another ring's key are forged as well."""
    leaf = SEALER.seal(ENTRY)
    for position in range(len(leaf)):
        changed = leaf[:position] + bytes([leaf[position] ^ 1]) + leaf[position + 1 :]
        with pytest.raises((AuditLogCorruptError, KekVersionUnavailableError)):
            SEALER.check(changed, kind=100, subject="key/key-1")
    other = keyring()
    for forged in (
        encode_leaf(ENTRY, key_version=1),
        LeafSealer(lambda: other).seal(ENTRY),
        b"",
        b"x" * 400,
        leaf[:-1],
    ):
        assert finding(forged) == "LEAF_FORGED"


def test_a_column_that_disagrees_is_told_apart_from_a_forged_leaf() -> None:
    """The leaf is what counts; an edited column would hide it from who looks for it."""
    leaf = SEALER.seal(ENTRY)
    assert finding(leaf, kind=101) == "COLUMN_DISAGREES"
    assert finding(leaf, subject="key/key-2") == "COLUMN_DISAGREES"
    assert finding(leaf, subject="") == "COLUMN_DISAGREES"


def test_an_entry_without_a_subject_is_not_blurred_with_one_that_has() -> None:
    """Leaf and subject are authenticated together, and neither can give bytes to the other."""
    bare = replace(ENTRY, provider_key_id="", agent_id="")
    leaf = SEALER.seal(bare)
    SEALER.check(leaf, kind=100, subject="")
    assert finding(leaf, subject="key/") == "COLUMN_DISAGREES"


def test_a_leaf_is_sealed_with_the_primary_key_and_checked_with_its_own() -> None:
    """Rotation: old leaves pass while their key can be had; leaves under an unknown key ask for a newer ring."""
    rings = [ring_of((1, KeyState.PRIMARY))]
    sealer = LeafSealer(lambda: rings[-1])
    old = sealer.seal(ENTRY)
    rings.append(ring_of((1, KeyState.DECRYPT_ONLY), (2, KeyState.PRIMARY)))
    new = sealer.seal(ENTRY)
    for leaf in (old, new):
        sealer.check(leaf, kind=100, subject="key/key-1")
    for ring, unknown in ((rings[0], new), (ring_of((2, KeyState.PRIMARY), (1, KeyState.DISABLED)), old)):
        only = LeafSealer(functools.partial(_itself, ring))
        with pytest.raises(KekVersionUnavailableError):
            only.check(unknown, kind=100, subject="key/key-1")


def _itself(ring: Keyring) -> Keyring:
    return ring


@given(leaf=st.binary(max_size=200), tail=st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_nothing_but_a_refusal_comes_of_any_bytes(leaf: bytes, tail: bytes) -> None:
    """Bytes of somebody's own are refused without a crash."""
    head = encode_leaf(ENTRY, key_version=1)[:60]
    for forged in (leaf, head[:40] + leaf + tail, head + leaf):
        assert finding(forged) == "LEAF_FORGED"


def test_the_vector_of_the_documentation_is_what_this_service_writes() -> None:
    """Another implementation can be built from the text: the vector's leaf, seal and hash follow from its fields."""
    (block,) = re.findall(r"```json\n(.*?)```", VECTOR.read_text(encoding="utf-8"), flags=re.DOTALL)
    vector: dict[str, Any] = json.loads(block)
    leaf = bytes.fromhex(vector["leaf"])
    key = Secret(bytes.fromhex(vector["authority_key"]))
    ring = Keyring("test", [KeyringKey(KeyPurpose.AUTHORITY_MAC, 1, KeyState.PRIMARY, key)], {})
    sealer = LeafSealer(lambda: ring)
    sealer.check(leaf, kind=vector["fields"]["kind"], subject=vector["subject"])
    entry = decode_leaf(leaf)
    assert entry.subject == vector["subject"]
    assert leaf_hash(leaf).hex() == vector["leaf_hash"]
    assert by_the_book(vector) == leaf


def by_the_book(vector: dict[str, Any]) -> bytes:
    """Return the leaf of a vector, written by its description alone."""

    def canonical(label: str, fields: list[bytes]) -> bytes:
        name = label.encode()
        framed = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
        return len(name).to_bytes(2, "big") + name + len(fields).to_bytes(2, "big") + framed

    fields = [
        bytes.fromhex(value)
        if name == "salt"
        else value.to_bytes(8, "big")
        if isinstance(value, int)
        else value.encode()
        for name, value in vector["fields"].items()
        if name != "details"
    ]
    fields += [part.encode() for detail in vector["fields"]["details"] for part in detail]
    unsealed = canonical("byok/audit/v1/leaf", [*fields, bytes(LEAF_SEAL_BYTES)])[:-LEAF_SEAL_BYTES]
    sealed = canonical("byok/audit/v1/leaf-seal", []) + unsealed + vector["subject"].encode()
    return (
        unsealed + hmac.new(bytes.fromhex(vector["authority_key"]), sealed, hashlib.sha256).digest()[:LEAF_SEAL_BYTES]
    )
