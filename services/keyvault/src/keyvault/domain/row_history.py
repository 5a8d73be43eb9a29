"""Whether an authority row is the one that the log wrote last.

The running self-audit and a whole verification of the log judge by this one rule. A row carries the index of the audit
entry that wrote it, under its HMAC. An older row that is made the present one again is therefore valid in itself, and
says so by its index: the log has a newer entry of the same row. A row that was deleted, or hidden by the columns that
find it, leaves an entry without a row; and a row without its entry says that the log was cut. All of this holds because
entries of changes of authority are never dropped and never emptied, however old they are: whatever retention comes to
drop, it must leave them. Else whoever can delete entries could make a row that was rolled back look merely old.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from keyvault.domain.audit_log import EntryKind

if TYPE_CHECKING:
    from keyvault.domain.audit_log import AuditEntry


class RowKind(enum.Enum):
    """Which authority rows there are."""

    KEY = "key"
    BINDING = "binding"
    SHARE = "share"
    HALTS = "halts"


@dataclass(frozen=True, slots=True)
class RowId:
    """One authority row through all of its history: a key, an agent, a key with an agent, or the set of halts."""

    kind: RowKind
    name: str

    @override
    def __str__(self) -> str:
        """Return the id for the log and the operator."""
        return f"{self.kind.value}/{self.name}" if self.name else self.kind.value


class RowFinding(enum.Enum):
    """What is wrong with a row."""

    ROLLED_BACK = "an older row was put in the place of the one that the log wrote last"
    MISSING = "the log wrote a row that is not there"
    UNRECORDED = "the row says that an entry wrote it which the log does not have"
    BLANKED = "the entry of a change of authority has an empty leaf, and nothing may empty one"


KINDS_OF_ROWS: Final = {
    EntryKind.KEY_CREATED: RowKind.KEY,
    EntryKind.KEY_UPDATED: RowKind.KEY,
    EntryKind.KEY_SECRET_REPLACED: RowKind.KEY,
    EntryKind.KEY_REVOKED: RowKind.KEY,
    EntryKind.KEY_STATE_CHANGED: RowKind.KEY,
    EntryKind.AGENT_BOUND: RowKind.BINDING,
    EntryKind.KEY_SHARED: RowKind.SHARE,
    EntryKind.KEY_UNSHARED: RowKind.SHARE,
    EntryKind.HALTS_CHANGED: RowKind.HALTS,
}


def share_name(provider_key_id: str, agent_id: str) -> str:
    """Return the name of the row of a share."""
    return f"{provider_key_id}/{agent_id}"


def row_written_by(entry: AuditEntry) -> RowId | None:
    """Return the row that an entry wrote, or None when it wrote none."""
    kind = KINDS_OF_ROWS.get(entry.kind)
    if kind is None:
        return None
    if kind is RowKind.SHARE:
        return RowId(kind, share_name(entry.provider_key_id, entry.agent_id))
    names = {RowKind.KEY: entry.provider_key_id, RowKind.BINDING: entry.agent_id, RowKind.HALTS: ""}
    return RowId(kind, names[kind])


def judge_row(*, row_index: int, newest_entry_index: int) -> RowFinding | None:
    """Return what is wrong with a present row, by the newest entry of it that the log has (0 for none)."""
    if newest_entry_index > row_index:
        return RowFinding.ROLLED_BACK
    if newest_entry_index < row_index:
        return RowFinding.UNRECORDED
    return None


def judge_entry(*, is_row_there: bool, is_blank: bool) -> RowFinding | None:
    """Return what is wrong when an authority entry has, or has not, the row that it wrote, superseded or not.

    A blank entry tells by its columns alone what it wrote, and these are anybody's: it is a finding whatever they say.
    """
    if is_blank:
        return RowFinding.BLANKED
    return None if is_row_there else RowFinding.MISSING
