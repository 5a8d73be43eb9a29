"""HPKE: what is sealed to one process, or bound to one request, opens nowhere else."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from keyvault.domain import sealing
from keyvault.domain.errors import SealedSecretInvalidError
from keyvault.domain.keyring import KeyPurpose
from keyvault.domain.sealing import (
    info_bytes,
    open_submission,
    parse_recipient,
    seal_leases,
    submission_public_key,
)
from servicekit.errors import InvalidArgumentError
from services.keyvault.tests.unit.builders import keyring

SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
BOUND_TO = ("test", "owner-1", "anthropic", "", "request-1", "submission-1")


def test_leases_open_for_their_process_deployment_and_holder_alone() -> None:
    """Another key, another deployment or another holder opens nothing."""
    key = X25519PrivateKey.generate()
    sealed = seal_leases(b"leases", recipient=key.public_key(), deployment="test", holder="holder-1")
    info = b"\x00\x00\x00\x0dbyok.lease.v1\x00\x00\x00\x04test\x00\x00\x00\x08holder-1"
    assert SUITE.decrypt(sealed, key, info) == b"leases"
    wrong = [
        (X25519PrivateKey.generate(), info),
        (key, info_bytes(("byok.lease.v1", "test", "holder-2"))),
        (key, info_bytes(("byok.lease.v1", "prod", "holder-1"))),
        (key, b""),
    ]
    for other_key, other_info in wrong:
        with pytest.raises(InvalidTag):
            SUITE.decrypt(sealed, other_key, other_info)


@pytest.mark.parametrize("public_key", [b"", bytes(31), bytes(33), bytes(32), b"\x01" + bytes(31)])
def test_a_bad_public_key_is_refused(public_key: bytes) -> None:
    """Neither another length nor a point of small order is sealed to."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse_recipient(public_key, field="recipient_public_key")
    assert caught.value.violations[0].field == "recipient_public_key"


def test_a_submission_opens_for_what_it_was_bound_to_alone() -> None:
    """Every part of the binding counts: a blob opens under no other owner, provider, URL or request."""
    key = keyring().primary(KeyPurpose.SUBMISSION)
    public = X25519PublicKey.from_public_bytes(submission_public_key(key))
    blob = SUITE.encrypt(b"sk-secret", public, info_bytes(("byok.submission.v1", *BOUND_TO)))
    assert open_submission(blob, key=key, bound_to=BOUND_TO).reveal() == b"sk-secret"
    for position in range(len(BOUND_TO)):
        changed = [*BOUND_TO]
        changed[position] += "x"
        with pytest.raises(SealedSecretInvalidError):
            open_submission(blob, key=key, bound_to=changed)
    with pytest.raises(SealedSecretInvalidError):
        open_submission(blob, key=key, bound_to=(*BOUND_TO, "org-1"))
    for bad in (b"", blob[:-1], bytes(32) + blob[32:]):
        with pytest.raises(SealedSecretInvalidError):
            open_submission(bad, key=key, bound_to=BOUND_TO)


def test_without_its_binding_a_submission_opens_for_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a blob that is bound to the label alone is redirected to another owner or URL."""
    monkeypatch.setattr(sealing, "info_bytes", lambda parts: next(iter(parts)).encode())
    key = keyring().primary(KeyPurpose.SUBMISSION)
    public = X25519PublicKey.from_public_bytes(submission_public_key(key))
    blob = SUITE.encrypt(b"sk-secret", public, b"byok.submission.v1")
    for bound_to in (BOUND_TO, ("test", "owner-2", "anthropic", "https://evil.example.com", "request-2", "x")):
        assert open_submission(blob, key=key, bound_to=bound_to).reveal() == b"sk-secret"
