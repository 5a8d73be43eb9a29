"""Attacks on an envelope's bytes, each with the control that stops it switched off to show that it would work."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyvault.domain import envelope
from keyvault.domain.envelope import Envelope, EnvelopeContext, open_envelope, seal, wrap_dek
from keyvault.domain.errors import EnvelopeCorruptError
from servicekit.secrets import Secret
from services.keyvault.tests.unit.test_envelope import CONTEXT, KEK, OTHER_FIELDS, OTHER_HOLDERS, SECRET
from services.keyvault.tests.unit.two_key_ciphertexts import BLOCK_BYTES, collide

DEKS = (Secret(b"\1" * 32), Secret(b"\2" * 32))
BLOCKS = 3
HEADER_BYTES = 8
CIPHERTEXT_AT = 84


class UnauthenticatedGcm:
    """AES-GCM without its tag: what counter mode alone would be."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def decrypt(self, nonce: bytes, ciphertext: bytes, _associated_data: bytes) -> bytes:
        """Return whatever the bytes decrypt to."""
        counter = modes.CTR(nonce + b"\0\0\0\2")
        decryptor = Cipher(algorithms.AES(self._key), counter).decryptor()
        return decryptor.update(ciphertext[:-BLOCK_BYTES]) + decryptor.finalize()


def two_key_blob() -> bytes:
    """Return a sealed secret whose ciphertext and tag fit both DEKs; its commitment is the first one's."""
    salt, nonce = b"s" * 32, b"n" * 12
    header = envelope._SECRET_HEADER.pack(b"BYOK", 1, 1, BLOCKS * BLOCK_BYTES)
    derived = [envelope._derive(dek, salt, b"byok/envelope/v1/secret") for dek in DEKS]
    sealed = collide((derived[0][0], derived[1][0]), nonce, associated_data=header + CONTEXT.canonical(), blocks=BLOCKS)
    return b"".join((header, salt, derived[0][1], nonce, sealed))


def opened(blob: bytes, dek: Secret) -> bytes:
    """Open a sealed secret beside a DEK that an insider wraps."""
    wrapped = wrap_dek(dek, associated_data=CONTEXT.canonical(), kek=KEK)
    return open_envelope(Envelope(blob, wrapped), context=CONTEXT, kek=KEK).reveal()


def test_a_two_key_collision_opens_under_the_key_that_it_commits_to_alone() -> None:
    """One stored ciphertext is one secret: swapping the DEK beside it gives no other."""
    blob = two_key_blob()
    assert len(opened(blob, DEKS[0])) == BLOCKS * BLOCK_BYTES
    with pytest.raises(EnvelopeCorruptError):
        opened(blob, DEKS[1])


def test_without_the_commitment_one_ciphertext_is_two_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: AES-GCM itself takes the blob under both keys."""
    blob = two_key_blob()
    monkeypatch.setattr(envelope, "bytes_eq", lambda *_: True)
    first, second = (opened(blob, dek) for dek in DEKS)
    assert len(first) == len(second) == BLOCKS * BLOCK_BYTES
    assert first != second


def test_without_the_tag_a_flipped_byte_is_another_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of authentication: each byte of the ciphertext can be chosen by who stores it."""
    sealed = seal(SECRET, context=CONTEXT, kek=KEK)
    monkeypatch.setattr(envelope, "AESGCM", UnauthenticatedGcm)
    for position in range(len(SECRET.reveal())):
        changed = bytearray(sealed.sealed_secret)
        changed[CIPHERTEXT_AT + position] ^= 1
        secret = bytearray(
            open_envelope(replace(sealed, sealed_secret=bytes(changed)), context=CONTEXT, kek=KEK).reveal()
        )
        secret[position] ^= 1
        assert bytes(secret) == SECRET.reveal()


CONTEXTS = {name: replace(CONTEXT, **{name: value}) for name, value in OTHER_FIELDS.items()} | {
    name: replace(CONTEXT, holder=holder) for name, holder in OTHER_HOLDERS.items()
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_without_associated_data_an_envelope_opens_anywhere(
    monkeypatch: pytest.MonkeyPatch, context: EnvelopeContext
) -> None:
    """The negative control of binding: it opens for another owner, scope, version, provider or base URL."""
    monkeypatch.setattr(EnvelopeContext, "canonical", lambda _: b"")
    assert open_envelope(seal(SECRET, context=CONTEXT, kek=KEK), context=context, kek=KEK) == SECRET


def test_joined_fields_would_let_a_boundary_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of length prefixes: an agent's id that takes a letter of its owner's id fits."""

    def joined(context: EnvelopeContext) -> bytes:
        holder = context.holder
        return f"{context.provider_key_id}{holder.owned_by.party_id}{holder.agent_id}".encode()

    monkeypatch.setattr(EnvelopeContext, "canonical", joined)
    shifted = replace(
        CONTEXT, holder=replace(CONTEXT.holder, owned_by=replace(CONTEXT.holder.owned_by, party_id="owner-1a"))
    )
    shifted = replace(shifted, holder=replace(shifted.holder, agent_id="gent-1"))
    assert open_envelope(seal(SECRET, context=CONTEXT, kek=KEK), context=shifted, kek=KEK) == SECRET


def test_the_collision_is_one_of_aes_gcm_itself() -> None:
    """The blob is no trick of this test's: the library decrypts it under two unrelated keys."""
    keys, nonce = (b"a" * 32, b"b" * 32), b"n" * 12
    blob = collide(keys, nonce, associated_data=b"bound", blocks=4)
    plaintexts = {AESGCM(key).decrypt(nonce, blob, b"bound") for key in keys}
    assert len(plaintexts) == 2
