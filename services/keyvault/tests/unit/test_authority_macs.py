"""HMACs over authority rows: they hold for one record at one index under one key."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyvault.domain.authority import RowSeal, seal_window, verify_row
from keyvault.domain.errors import AuthorityForgedError, KekVersionUnavailableError
from keyvault.domain.provider_keys import encode_key
from services.keyvault.tests.unit.builders import keyring, provider_key

RING = keyring()
RECORD = encode_key(provider_key())


def seal() -> RowSeal:
    """Return the seal of the record at index 12."""
    found = seal_window(RING, RECORD, first_index=10, length=5).seal_at(12)
    assert found is not None
    return found


def test_a_seal_of_the_window_verifies() -> None:
    """Each index of a window has its own seal, and no index outside of it has one."""
    window = seal_window(RING, RECORD, first_index=10, length=5)
    for audit_index in range(10, 15):
        found = window.seal_at(audit_index)
        assert found is not None
        verify_row(RING, RECORD, seal=found, row_id="key")
    assert window.seal_at(9) is None
    assert window.seal_at(15) is None
    assert len(set(window.macs)) == len(window.macs)


def test_every_changed_byte_of_a_record_is_found() -> None:
    """An edited row fails."""
    for position in range(len(RECORD)):
        changed = bytearray(RECORD)
        changed[position] ^= 1
        with pytest.raises(AuthorityForgedError):
            verify_row(RING, bytes(changed), seal=seal(), row_id="key")


@pytest.mark.parametrize("change", [{"audit_index": 11}, {"mac": bytes(32)}, {"mac": b""}])
def test_a_changed_seal_is_found(change: dict[str, int | bytes]) -> None:
    """A row at another place of the log, or with another HMAC, fails and names itself."""
    with pytest.raises(AuthorityForgedError) as caught:
        verify_row(RING, RECORD, seal=replace(seal(), **change), row_id="key")  # type: ignore[arg-type]  # by name
    assert caught.value.facts["row_id"] == "key"


def test_another_rings_seal_is_found() -> None:
    """A seal under another key fails."""
    with pytest.raises(AuthorityForgedError):
        verify_row(keyring(), RECORD, seal=seal(), row_id="key")


def test_an_unknown_key_version_is_a_typed_error() -> None:
    """A seal under a version that this ring lacks is no forgery yet: the ring may be old."""
    with pytest.raises(KekVersionUnavailableError):
        verify_row(RING, RECORD, seal=replace(seal(), mac_key_version=2), row_id="key")
