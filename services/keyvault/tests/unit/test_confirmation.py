"""A destruction is confirmed for one version under one root key, and for ten minutes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from keyvault.domain.errors import ConfirmationRequiredError
from keyvault.domain.keyring import KeyPurpose, KeyState
from keyvault.domain.keyring_versions import KeyringVersion, confirmation, ensure_confirmed
from services.keyvault.tests.unit.builders import NOW, keyring

RING = keyring()
VERSION = KeyringVersion(
    purpose=KeyPurpose.KEK,
    version=1,
    state=KeyState.DISABLED,
    root_key_id="file:1",
    create_time=NOW,
    update_time=NOW,
)


@pytest.mark.parametrize("later", [timedelta(), timedelta(minutes=9, seconds=59)])
def test_a_confirmation_is_good_for_ten_minutes(later: timedelta) -> None:
    """It needs no state: any replica can check it."""
    ensure_confirmed(RING, VERSION, confirmation(RING, VERSION, NOW), NOW + later)


@pytest.mark.parametrize(
    ("version", "later"),
    [
        (replace(VERSION, version=2), timedelta()),
        (replace(VERSION, purpose=KeyPurpose.SUBMISSION), timedelta()),
        (replace(VERSION, root_key_id="file:2"), timedelta()),
        (VERSION, timedelta(minutes=12)),
        (VERSION, -timedelta(minutes=2)),
    ],
)
def test_a_confirmation_is_for_one_version_and_time(version: KeyringVersion, later: timedelta) -> None:
    """Another version, purpose, root key or time is not what was confirmed, and the answer tells what would be."""
    given = confirmation(RING, VERSION, NOW)
    with pytest.raises(ConfirmationRequiredError) as refused:
        ensure_confirmed(RING, version, given, NOW + later)
    assert refused.value.facts["confirmation"] == confirmation(RING, version, NOW + later)


@pytest.mark.parametrize("given", ["", "destroy-kek-1-", "zerstöre-kek-1"])
def test_what_is_no_confirmation_is_refused(given: str) -> None:
    """Whatever is typed, the answer is the same."""
    with pytest.raises(ConfirmationRequiredError):
        ensure_confirmed(RING, VERSION, given, NOW)


def test_another_deployment_confirms_nothing() -> None:
    """The key of the HMAC is in the keyring."""
    with pytest.raises(ConfirmationRequiredError):
        ensure_confirmed(keyring(), VERSION, confirmation(RING, VERSION, NOW), NOW)
