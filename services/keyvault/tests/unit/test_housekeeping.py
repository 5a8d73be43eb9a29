"""Canaries: which of them failing stops a replica, and which is an alarm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from keyvault.adapters.memory import MemoryAuthority, MemoryKeyringStore
from keyvault.domain.keyring import KeyPurpose, Keyring, KeyState, draw_key
from keyvault.usecases.hold_keyring import unwrap_records, wrap_key, wrap_new_keys
from keyvault.workers.housekeeping import Housekeeping
from services.keyvault.tests.unit.builders import ROOT, leaf_sealer

if TYPE_CHECKING:
    from testkit.fake_clock import FakeClock


@dataclass
class OneRing:
    """A source of one ring."""

    ring: Keyring

    def current(self) -> Keyring:
        """Return it."""
        return self.ring


@pytest.mark.parametrize("broken", [None, 1, 2])
async def test_only_the_primary_kek_stops_a_replica(fake_clock: FakeClock, broken: int | None) -> None:
    """Another version that does not open its canary costs its own secrets, and is counted for the alarm."""
    records = await wrap_new_keys("test", KeyPurpose, ROOT)
    old, *others = records
    second = (await wrap_new_keys("test", [KeyPurpose.KEK], ROOT))[0]
    keks = {
        1: replace(old, state=KeyState.DECRYPT_ONLY),
        2: await wrap_key("test", draw_key(KeyPurpose.KEK, version=2), ROOT),
    }
    if broken is not None:
        keks[broken] = replace(keks[broken], canary=second.canary)
    source: Any = OneRing(await unwrap_records("test", [*keks.values(), *others], [ROOT]))
    housekeeping = Housekeeping(
        keyring=source,
        store=MemoryAuthority(MemoryKeyringStore(), leaf_sealer()),
        clock=fake_clock,
        interval=timedelta(seconds=30),
        requests_kept=timedelta(days=2),
    )
    housekeeping.probe()
    assert housekeeping.is_primary_kek_usable is (broken != 2)
    assert housekeeping.failing_canaries == (0 if broken is None else 1)
