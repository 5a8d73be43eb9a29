"""Lease ids: only this service makes them, and each stands for one holder, key and version."""

from __future__ import annotations

from datetime import timedelta

import pytest

from keyvault.domain.canonical import encode_fields
from keyvault.domain.errors import LeaseUnknownError
from keyvault.domain.keyring import KeyPurpose
from keyvault.domain.lease_ids import ensure_granted, new_lease_id
from servicekit.ids import new_uuid7, uuid7_time
from services.keyvault.tests.unit.builders import NOW, keyring

HOLDER = "0192f0c1-2f00-7000-8000-0000000000aa"
KEY = "0192f0c1-2f00-7000-8000-0000000000bb"
RING = keyring()
GRANT = {"holder": HOLDER, "provider_key_id": KEY, "key_version": 1}


def lease_id() -> str:
    """Return the id of a lease."""
    return new_lease_id(RING, holder=HOLDER, provider_key_id=KEY, key_version=1, now=NOW)


def ensure(value: str, **changes: object) -> None:
    """Check an id for a grant, with changes."""
    ensure_granted(RING, value, **(GRANT | changes))  # type: ignore[arg-type]  # a table of changes


def test_an_id_is_a_uuid7_of_its_time_and_verifies() -> None:
    """It is an id like any other to everybody else."""
    made = lease_id()
    assert uuid7_time(made) == NOW
    ensure(made)


def test_no_two_ids_of_a_moment_need_be_equal() -> None:
    """Twelve bits are random, so that leases of one millisecond on one key tell apart."""
    assert len({lease_id() for _ in range(200)}) > 150


@pytest.mark.parametrize(
    "change",
    [{"holder": HOLDER.replace("aa", "ab")}, {"provider_key_id": KEY.replace("bb", "bc")}, {"key_version": 2}],
    ids=["another holder", "another key", "another version"],
)
def test_an_id_is_worth_nothing_for_another_grant(change: dict[str, object]) -> None:
    """Who saw a lease id in a ledger can report nothing by it."""
    made = lease_id()
    with pytest.raises(LeaseUnknownError):
        ensure(made, **change)


def test_every_changed_digit_is_found() -> None:
    """Time, random bits and HMAC are all bound."""
    made = lease_id()
    for position, digit in enumerate(made):
        if digit == "-":
            continue
        changed = made[:position] + ("0" if digit != "0" else "1") + made[position + 1 :]
        with pytest.raises(LeaseUnknownError):
            ensure(changed)


@pytest.mark.parametrize(
    "value",
    ["", "x", "é" * 36, new_uuid7(NOW), new_uuid7(NOW).upper(), new_uuid7(NOW) + "\n"],
    ids=["nothing", "a letter", "other letters", "an id", "upper case", "a line"],
)
def test_what_is_no_lease_id_is_unknown(value: str) -> None:
    """A made-up id is refused, whatever its form; the answer carries no more than an id's length of it."""
    with pytest.raises(LeaseUnknownError) as raised:
        ensure(value)
    assert len(str(raised.value.facts["lease_id"])) <= 36


def test_another_rings_ids_are_unknown() -> None:
    """The key decides, not the form."""
    made = new_lease_id(keyring(), holder=HOLDER, provider_key_id=KEY, key_version=1, now=NOW + timedelta(days=1))
    with pytest.raises(LeaseUnknownError):
        ensure(made)


def test_the_label_keeps_ids_apart_from_rows() -> None:
    """An HMAC over anything else under the same key is no lease id."""
    context = RING.mac(KeyPurpose.AUTHORITY_MAC, 1)
    context.update(encode_fields("byok/authority/v1/provider-key", (KEY,)))
    forged = lease_id()[:19] + "-" + context.hexdigest()[:12]
    with pytest.raises(LeaseUnknownError):
        ensure(forged)
