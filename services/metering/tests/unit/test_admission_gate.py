"""The gate: who may admit, until when."""

from datetime import timedelta

import pytest

from metering.domain.errors import CustodyLogRolledBackError, DependencyUnavailableError, RebuildingError
from metering.domain.licences import Licence, StoreIdentity
from metering.usecases.admission_gate import AdmissionGate
from servicekit.errors import OverloadedError
from testkit.fake_clock import FakeClock

LICENCE = Licence(StoreIdentity("run", "replication"), (1,) * 256)


@pytest.fixture
def gate(fake_clock: FakeClock) -> AdmissionGate:
    """Return a gate that is open for ten seconds."""
    opened = AdmissionGate(fake_clock)
    opened.open(LICENCE, until=fake_clock.monotonic() + 10)
    opened.note_custody(rolled_back_size=None)
    return opened


def test_a_gate_starts_closed(fake_clock: FakeClock) -> None:
    """Unknown is never allowed: neither which history of Redis it is, nor how KeyVault's log stands."""
    gate = AdmissionGate(fake_clock)
    with pytest.raises(RebuildingError):
        gate.enter_to_finish()
    gate.open(LICENCE, until=fake_clock.monotonic() + 10)
    with pytest.raises(DependencyUnavailableError, match="audit log"):
        gate.enter()
    assert not gate.is_admitting
    assert gate.enter_to_finish() == LICENCE


def test_a_rolled_back_custody_log_lets_nothing_new_in_and_lets_the_rest_finish(gate: AdmissionGate) -> None:
    """It outranks what passes by itself, leaves the replica ready for settlements, and ends when it is accepted."""
    gate.note_custody(rolled_back_size=7)
    gate.fill("memory", "Redis is full")
    with pytest.raises(CustodyLogRolledBackError) as refused:
        gate.enter()
    assert (refused.value.facts, refused.value.retry_after) == ({"witnessed_size": 7}, None)
    assert gate.enter_to_finish() == LICENCE
    assert (gate.is_open, gate.is_admitting) == (True, False)
    gate.fill("memory", "")
    gate.note_custody(rolled_back_size=None)
    assert gate.enter() == LICENCE


async def test_an_ended_licence_lets_nothing_new_in_and_lets_the_rest_finish(
    gate: AdmissionGate, fake_clock: FakeClock
) -> None:
    """Reserves stop at the end; settlements do not; a reply after the end grants nothing."""
    licence = gate.enter()
    await fake_clock.advance(timedelta(seconds=10))
    with pytest.raises(DependencyUnavailableError) as ended:
        gate.enter()
    assert ended.value.facts["dependency"] == "postgres"
    with pytest.raises(DependencyUnavailableError):
        gate.confirm(licence)
    assert gate.enter_to_finish() == LICENCE
    assert not gate.is_open


async def test_a_wall_clock_that_steps_does_not_lengthen_a_licence(gate: AdmissionGate, fake_clock: FakeClock) -> None:
    """Licences are counted on the monotonic clock."""
    fake_clock.set_wall_clock(fake_clock.now() - timedelta(days=1))
    await fake_clock.advance(timedelta(seconds=11))
    assert not gate.is_open


def test_a_grant_of_another_history_is_not_confirmed(gate: AdmissionGate, fake_clock: FakeClock) -> None:
    """A rebuild between the script and its reply voids what it granted."""
    licence = gate.enter()
    gate.open(Licence(LICENCE.identity, (2,) * 256), until=fake_clock.monotonic() + 10)
    with pytest.raises(RebuildingError):
        gate.confirm(licence)


def test_a_rebuild_stops_settlements_too(gate: AdmissionGate) -> None:
    """Counters that are being put back cannot be written."""
    gate.close(is_rebuilding=True)
    with pytest.raises(RebuildingError):
        gate.enter_to_finish()


def test_each_bound_is_lifted_by_itself(gate: AdmissionGate) -> None:
    """A full memory and a backlog are two reasons."""
    gate.fill("memory", "Redis is full")
    gate.fill("backlog", "the ledger is behind")
    with pytest.raises(OverloadedError, match="Redis is full and the ledger is behind"):
        gate.enter()
    gate.fill("memory", "")
    with pytest.raises(OverloadedError, match="the ledger is behind"):
        gate.enter()
    gate.fill("backlog", "")
    assert gate.enter() == LICENCE
