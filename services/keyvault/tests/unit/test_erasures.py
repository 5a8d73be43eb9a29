"""How far an erasure has come."""

from __future__ import annotations

from datetime import timedelta

import pytest

from keyvault.domain.erasures import Erasure, ErasureState
from services.keyvault.tests.unit.builders import NOW

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("backups_end", [None, -1, 0, 1])
def test_an_owner_is_erased_when_the_last_backup_has_expired(is_finished: bool, backups_end: int | None) -> None:  # noqa: FBT001 (a parameter of the table)
    """Not before every key is revoked, and not while a registered backup of before is kept."""
    erasure = Erasure(
        owner_id="owner-1",
        begin_index=1,
        caller="edge",
        actor="test",
        erased_keys=1,
        last_index=1,
        create_time=NOW,
        finish_time=NOW if is_finished else None,
        backups_expire_time=None if backups_end is None else NOW + backups_end * SECOND,
    )
    is_erased = is_finished and backups_end != 1
    assert erasure.state(NOW) is (ErasureState.ERASED if is_erased else ErasureState.ERASED_LIVE)
