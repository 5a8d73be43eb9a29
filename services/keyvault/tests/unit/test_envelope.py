"""Envelope v1: known answers, and that nothing changed opens."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvault.domain.envelope import (
    SECRET_BYTES_MAX,
    WRAPPED_DEK_BYTES,
    Envelope,
    EnvelopeContext,
    Kek,
    open_envelope,
    seal,
    wrap_dek,
)
from keyvault.domain.errors import EnvelopeCorruptError
from keyvault.domain.ownership import Account, AccountKind, Holder, Scope
from servicekit.secrets import Secret
from services.keyvault.tests.unit import envelope_by_the_book as book

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "envelope_v1_vectors.json").read_text(encoding="utf-8")
)["vectors"]
KEK = Kek(3, Secret(bytes(range(32))))
CONTEXT = EnvelopeContext(
    deployment="test",
    provider_key_id="0192f0c1-2f00-7000-8000-000000000001",
    key_version=1,
    holder=Holder(Scope.AGENT, Account(AccountKind.OWNER, "owner-1"), "agent-1"),
    provider="anthropic",
    base_url="https://api.anthropic.com",
)
SECRET = Secret(b"sk-ant-api03-canary")
OTHER_FIELDS: dict[str, Any] = {
    "deployment": "other",
    "provider_key_id": "0192f0c1-2f00-7000-8000-000000000002",
    "key_version": 2,
    "provider": "openai",
    "base_url": "https://api.anthropic.com/x",
}
OTHER_HOLDERS = {
    "scope": Holder(Scope.OWNER, Account(AccountKind.OWNER, "owner-1"), "agent-1"),
    "account kind": Holder(Scope.AGENT, Account(AccountKind.ORGANIZATION, "owner-1"), "agent-1"),
    "owner": Holder(Scope.AGENT, Account(AccountKind.OWNER, "owner-2"), "agent-1"),
    "agent": Holder(Scope.AGENT, Account(AccountKind.OWNER, "owner-1"), "agent-2"),
    "a shifted boundary": Holder(Scope.AGENT, Account(AccountKind.OWNER, "owner-1a"), "gent-1"),
}


def context_of(vector: dict[str, Any]) -> EnvelopeContext:
    """Return the context of a vector."""
    at = vector["context"]
    account = Account(AccountKind(at["account_kind"]), at["account_id"])
    return EnvelopeContext(
        deployment=at["deployment"],
        provider_key_id=at["provider_key_id"],
        key_version=at["key_version"],
        holder=Holder(Scope(at["scope"]), account, at["agent_id"]),
        provider=at["provider"],
        base_url=at["base_url"],
    )


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_known_answers_open(vector: dict[str, Any]) -> None:
    """The published vectors open to their secrets, and the context gives their associated data."""
    envelope = Envelope(bytes.fromhex(vector["sealed_secret"]), bytes.fromhex(vector["wrapped_dek"]))
    kek = Kek(vector["kek_version"], Secret(bytes.fromhex(vector["kek"])))
    context = context_of(vector)
    assert context.canonical().hex() == vector["associated_data"]
    assert open_envelope(envelope, context=context, kek=kek).reveal().hex() == vector["secret"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_known_answers_follow_from_the_document(vector: dict[str, Any]) -> None:
    """A second implementation, written from the document, makes the published bytes from the published inputs."""
    context = book.associated_data(list(vector["context"].values()))
    dek, kek = bytes.fromhex(vector["dek"]), bytes.fromhex(vector["kek"])
    secret_drawn = book.Randomness(
        bytes.fromhex(vector["sealed_secret_salt"]), bytes.fromhex(vector["sealed_secret_nonce"])
    )
    dek_drawn = book.Randomness(bytes.fromhex(vector["wrapped_dek_salt"]), bytes.fromhex(vector["wrapped_dek_nonce"]))
    sealed = book.sealed_secret(bytes.fromhex(vector["secret"]), dek, context, secret_drawn)
    assert sealed.hex() == vector["sealed_secret"]
    assert book.wrapped_dek(dek, kek, vector["kek_version"], context, dek_drawn).hex() == vector["wrapped_dek"]


@given(st.binary(min_size=1, max_size=SECRET_BYTES_MAX))
def test_what_is_sealed_opens(secret: bytes) -> None:
    """Every secret of an allowed length comes back."""
    assert open_envelope(seal(Secret(secret), context=CONTEXT, kek=KEK), context=CONTEXT, kek=KEK).reveal() == secret


@pytest.mark.parametrize("secret", [bytes(SECRET_BYTES_MAX + 1), b""], ids=["too long", "empty"])
def test_a_secret_of_another_length_is_not_sealed(secret: bytes) -> None:
    """Lengths that the header cannot say are refused."""
    with pytest.raises(ValueError, match="secret"):
        seal(Secret(secret), context=CONTEXT, kek=KEK)


def test_every_changed_byte_is_found() -> None:
    """Flipping any one byte of either part makes the envelope corrupt; the untouched one opens."""
    envelope = seal(SECRET, context=CONTEXT, kek=KEK)
    assert len(envelope.wrapped_dek) == WRAPPED_DEK_BYTES
    for part in fields(Envelope):
        original = getattr(envelope, part.name)
        for position in range(len(original)):
            for mask in (0x01, 0x80, 0xFF):
                changed = bytearray(original)
                changed[position] ^= mask
                with pytest.raises(EnvelopeCorruptError):
                    open_envelope(replace(envelope, **{part.name: bytes(changed)}), context=CONTEXT, kek=KEK)
    assert open_envelope(envelope, context=CONTEXT, kek=KEK) == SECRET


def test_every_cut_and_every_addition_is_found() -> None:
    """A shorter or longer part is corrupt."""
    envelope = seal(SECRET, context=CONTEXT, kek=KEK)
    for part in fields(Envelope):
        original = getattr(envelope, part.name)
        for changed in [original[:length] for length in range(len(original))] + [original + b"\0"]:
            with pytest.raises(EnvelopeCorruptError):
                open_envelope(replace(envelope, **{part.name: changed}), context=CONTEXT, kek=KEK)


@pytest.mark.parametrize("name", OTHER_FIELDS)
def test_each_bound_field_binds(name: str) -> None:
    """An envelope opens under no other deployment, key, version, provider or base URL."""
    envelope = seal(SECRET, context=CONTEXT, kek=KEK)
    with pytest.raises(EnvelopeCorruptError):
        open_envelope(envelope, context=replace(CONTEXT, **{name: OTHER_FIELDS[name]}), kek=KEK)


@pytest.mark.parametrize("holder", OTHER_HOLDERS.values(), ids=OTHER_HOLDERS)
def test_the_holder_binds(holder: Holder) -> None:
    """An envelope opens for no other owner, agent or scope."""
    with pytest.raises(EnvelopeCorruptError):
        open_envelope(seal(SECRET, context=CONTEXT, kek=KEK), context=replace(CONTEXT, holder=holder), kek=KEK)


def test_no_field_of_the_context_is_left_out() -> None:
    """The tests above change every field that there is: a new one must be bound, and tested, too."""
    assert {field.name for field in fields(EnvelopeContext)} == {*OTHER_FIELDS, "holder"}
    assert {field.name for field in fields(Holder)} == {"scope", "owned_by", "agent_id"}


def test_each_layer_binds_by_itself() -> None:
    """A DEK wrapped for another context does not unwrap, although the secret's own layer would."""
    envelope = seal(SECRET, context=CONTEXT, kek=KEK)
    other = replace(CONTEXT, base_url="https://evil.example.com")
    rewrapped = wrap_dek(Secret(bytes(32)), associated_data=other.canonical(), kek=KEK)
    with pytest.raises(EnvelopeCorruptError):
        open_envelope(replace(envelope, wrapped_dek=rewrapped), context=CONTEXT, kek=KEK)


def test_parts_of_two_envelopes_do_not_mix() -> None:
    """The secret of one envelope does not open with the DEK of another of the same context."""
    first, second = (seal(SECRET, context=CONTEXT, kek=KEK) for _ in range(2))
    with pytest.raises(EnvelopeCorruptError):
        open_envelope(Envelope(first.sealed_secret, second.wrapped_dek), context=CONTEXT, kek=KEK)


@pytest.mark.parametrize("kek", [Kek(3, Secret(bytes(32))), Kek(4, KEK.key)], ids=["other key", "other version"])
def test_another_kek_does_not_open(kek: Kek) -> None:
    """Neither another key under the same version nor the same key under another."""
    with pytest.raises(EnvelopeCorruptError) as caught:
        open_envelope(seal(SECRET, context=CONTEXT, kek=KEK), context=CONTEXT, kek=kek)
    assert caught.value.facts == {"provider_key_id": CONTEXT.provider_key_id, "key_version": 1}


def test_sealing_twice_repeats_nothing() -> None:
    """Salts, nonces and DEKs are drawn anew each time."""
    envelopes = [seal(SECRET, context=CONTEXT, kek=KEK) for _ in range(100)]
    assert len({envelope.sealed_secret[8:84] for envelope in envelopes}) == len(envelopes)
    assert len({envelope.wrapped_dek[10:118] for envelope in envelopes}) == len(envelopes)
