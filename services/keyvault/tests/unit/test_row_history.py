"""Whether an authority row is the one that the log wrote last."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvault.domain.audit_log import AUTHORITY_KIND_END, AuditEntry, EntryKind
from keyvault.domain.row_history import RowFinding, RowId, RowKind, judge_entry, judge_row, row_written_by
from services.keyvault.tests.unit.builders import NOW


def entry(kind: EntryKind) -> AuditEntry:
    """Return an entry that names everything."""
    return AuditEntry(kind=kind, time=NOW, caller="c", provider_key_id="k", agent_id="a")


@pytest.mark.parametrize("kind", EntryKind)
def test_every_change_of_authority_writes_one_row(kind: EntryKind) -> None:
    """And nothing else does; a kind that is added without its row is found here."""
    row = row_written_by(entry(kind))
    assert (row is not None) == (kind < AUTHORITY_KIND_END)


@pytest.mark.parametrize(
    ("kind", "row", "name"),
    [
        (EntryKind.KEY_STATE_CHANGED, RowId(RowKind.KEY, "k"), "key/k"),
        (EntryKind.AGENT_BOUND, RowId(RowKind.BINDING, "a"), "binding/a"),
        (EntryKind.KEY_UNSHARED, RowId(RowKind.SHARE, "k/a"), "share/k/a"),
        (EntryKind.HALTS_CHANGED, RowId(RowKind.HALTS, ""), "halts"),
    ],
)
def test_a_row_is_named_by_what_it_is_about(kind: EntryKind, row: RowId, name: str) -> None:
    """So that an operator finds it."""
    assert row_written_by(entry(kind)) == row
    assert str(row) == name


@given(row=st.integers(1, 50), newest=st.integers(0, 50))
def test_a_row_is_judged_by_its_newest_entry(row: int, newest: int) -> None:
    """Older than the log: rolled back. Newer than the log: the log was cut. Else sound."""
    finding = judge_row(row_index=row, newest_entry_index=newest)
    if newest > row:
        assert finding is RowFinding.ROLLED_BACK
    elif newest < row:
        assert finding is RowFinding.UNRECORDED
    else:
        assert finding is None


def test_an_entry_without_its_row_is_a_finding() -> None:
    """The row was deleted or hidden."""
    assert judge_entry(is_row_there=True, is_blank=False) is None
    assert judge_entry(is_row_there=False, is_blank=False) is RowFinding.MISSING


@pytest.mark.parametrize("is_row_there", [True, False])
def test_a_blank_entry_is_a_finding(is_row_there: bool) -> None:  # noqa: FBT001 - a parameter of the table above.
    """Whether or not its columns lead to a row: they are anybody's."""
    assert judge_entry(is_row_there=is_row_there, is_blank=True) is RowFinding.BLANKED
