"""Secrets as owners paste them."""

from __future__ import annotations

import hashlib

import pytest

from keyvault.domain.submitted_secrets import SUBMITTED_BYTES_MAX, equality_mac, fingerprint, parse_secret
from servicekit.errors import InvalidArgumentError
from servicekit.secrets import Secret
from services.keyvault.tests.unit.builders import keyring

KEY = b"sk-ant-api03-0123456789abcdef"

REFUSED = {
    b"": "SECRET_EMPTY",
    b" \r\n\t": "SECRET_EMPTY",
    b"\xc2\xa0\xe2\x80\x8b": "SECRET_EMPTY",
    b"a" * (SUBMITTED_BYTES_MAX + 1): "SECRET_TOO_LONG",
    b"sk-\xff\xfe": "SECRET_NOT_TEXT",
    b"sk-one sk-two": "SECRET_HAS_BAD_CHARACTERS",
    b"sk-one\nsk-two": "SECRET_HAS_BAD_CHARACTERS",
    b"sk-\x00one": "SECRET_HAS_BAD_CHARACTERS",
    b"sk-\x7fone": "SECRET_HAS_BAD_CHARACTERS",
    b"sk-\x1b[31m": "SECRET_HAS_BAD_CHARACTERS",
    "sk-öne".encode(): "SECRET_HAS_BAD_CHARACTERS",
    "sk-‍one".encode(): "SECRET_HAS_BAD_CHARACTERS",
}


@pytest.mark.parametrize("around", [b" ", b"\n", b"\r\n", b"\t \n", "\u00a0".encode(), "\ufeff".encode()])
def test_white_space_around_a_key_is_removed_and_reported(around: bytes) -> None:
    """A key pasted with what surrounds it is the key, and its owner is told."""
    parsed = parse_secret(around + KEY + around, field="plaintext")
    assert parsed.secret == Secret(KEY)
    (adjustment,) = parsed.adjustments
    assert adjustment.field == "plaintext"


def test_a_clean_key_is_left_alone() -> None:
    """Nothing is reported where nothing was put right."""
    assert parse_secret(KEY, field="plaintext").adjustments == ()


@pytest.mark.parametrize(("submitted", "reason"), REFUSED.items(), ids=lambda value: repr(value)[:30])
def test_what_cannot_be_a_key_is_refused(submitted: bytes, reason: str) -> None:
    """The refusal names the field and the remedy, and never shows what was sent."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse_secret(submitted, field="plaintext")
    (violation,) = caught.value.violations
    assert (violation.field, violation.reason) == ("plaintext", reason)
    assert "sk-one" not in str(caught.value)


def test_a_fingerprint_can_be_checked_with_sha256sum() -> None:
    """It is the beginning of the plain SHA-256, and the last characters."""
    seen = fingerprint(Secret(KEY), has_vendor_format=True)
    assert (seen.digest, seen.suffix) == (hashlib.sha256(KEY).hexdigest()[:16], "cdef")


@pytest.mark.parametrize(
    ("length", "has_format", "is_shown"), [(31, False, False), (31, True, True), (32, False, True)]
)
def test_a_guessable_secret_has_no_fingerprint(length: int, has_format: bool, is_shown: bool) -> None:  # noqa: FBT001 (a table)
    """A short secret of no vendor's format could be found by hashing guesses."""
    seen = fingerprint(Secret(b"x" * length), has_vendor_format=has_format)
    assert (bool(seen.digest), bool(seen.suffix)) == (is_shown, is_shown)


def test_equal_secrets_are_found_by_a_keyed_hmac() -> None:
    """Equal secrets have equal HMACs in one deployment, and in no other."""
    ring = keyring()
    first, second = (equality_mac(ring, Secret(KEY), version=1) for _ in range(2))
    assert first == second
    assert first != equality_mac(ring, Secret(KEY + b"x"), version=1)
    assert first != equality_mac(keyring(), Secret(KEY), version=1)
