"""ListEntries: what happened to a key, each entry with a proof against one signed checkpoint."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import EntryKind
from keyvault.domain.checkpoints import SignedCheckpoint
from keyvault.domain.new_keys import refused
from keyvault.domain.ownership import Principal, check_identifier
from keyvault.ports import LeafFilter, StoredLeaf
from keyvault.usecases.pages import page_size, read_token, write_token
from keyvault.usecases.read_entries import ProvedEntry, prove_entries, read_entry

if TYPE_CHECKING:
    from keyvault.domain.canonical import Field
    from keyvault.ports import AuditTree
    from keyvault.usecases.change_provider_keys import ProviderKeys
    from keyvault.usecases.integrate_log import IntegrateLog
    from keyvault.usecases.prove_log import ProveLog

READINGS_MAX: Final = 10
"""Readings of one call. A page may come out short, with a token to go on."""

CLOCKS_APART_MAX: Final = timedelta(minutes=15)
"""Entries carry the time of the replica that wrote them, so the log is in the order of time but for this much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryListing:
    """Which entries are asked for."""

    acting_for: Principal
    key_id: str
    agent_id: str
    kinds: frozenset[EntryKind]
    start_time: datetime | None
    end_time: datetime | None
    newest_first: bool
    page_size: int
    page_token: str

    @property
    def subject(self) -> str | None:
        """Return what the entries are found by; None for all entries there are."""
        if self.key_id:
            return f"key/{self.key_id}"
        return f"agent/{self.agent_id}" if self.agent_id else None

    @property
    def fields(self) -> tuple[Field, ...]:
        """Return what a page token is bound to."""
        times = ("" if each is None else each.isoformat() for each in (self.start_time, self.end_time))
        kinds = ",".join(str(int(kind)) for kind in sorted(self.kinds))
        return ("entries", self.acting_for.key, self.subject or "", kinds, *times, int(self.newest_first))

    def is_in_time(self, row: StoredLeaf) -> bool:
        """Return whether the entry lies within the times that are asked for. Raises AuditLogCorruptError."""
        if self.start_time is None and self.end_time is None:
            return True
        time = read_entry(row).time
        return (self.start_time is None or time >= self.start_time) and (self.end_time is None or time < self.end_time)


@dataclass(frozen=True, slots=True)
class EntryPage:
    """One page; the token is empty on the last one."""

    entries: tuple[ProvedEntry, ...]
    checkpoint: SignedCheckpoint
    next_page_token: str


class ListEntries:
    """Lists entries of the log for a principal."""

    def __init__(self, tree: AuditTree, *, keys: ProviderKeys, integrate: IntegrateLog, prove: ProveLog) -> None:
        """Read `tree`; `keys` says whose a key is."""
        self._tree = tree
        self._keys = keys
        self._integrate = integrate
        self._prove = prove

    async def __call__(self, listing: EntryListing) -> EntryPage:
        """Return one page.

        Raises:
            InvalidArgumentError: the page size, the page token or a filter does not fit.
            ProviderKeyNotFoundError: there is no such key, or it is not the principal's.
            AuditLogCorruptError: an entry is not what was signed, or the log could not be signed that far.
        """
        size = page_size(listing.page_size)
        token = read_token(listing.page_token, listing.fields)
        await self._ensure_allowed(listing)
        rows, read_to = await self._read(listing, size, after=int(token) if token else None)
        if rows:
            checkpoint = await self._integrate.covering(max(row.audit_index for row in rows))
        else:
            checkpoint = await self._integrate.newest()
        entries = await prove_entries(self._prove, rows, checkpoint.checkpoint)
        next_token = "" if read_to is None else write_token(str(read_to), listing.fields)
        return EntryPage(tuple(entries), checkpoint, next_token)

    async def _ensure_allowed(self, listing: EntryListing) -> None:
        """Raise unless the principal may read this: an owner the entries of keys that are theirs, an operator all."""
        if listing.key_id:
            check_identifier("key_id", listing.key_id)
        if listing.agent_id:
            check_identifier("agent_id", listing.agent_id)
        if listing.key_id and listing.agent_id:
            raise refused("agent_id", "ONE_OF_TWO", "Name a key or an agent, not both.")
        if listing.acting_for.operator_id:
            return
        if listing.agent_id:
            raise refused(
                "agent_id", "OPERATORS_ONLY", "Name a key; what happened to an agent is an operator's to read."
            )
        if not listing.key_id:
            raise refused("key_id", "REQUIRED", "Name the key whose entries are asked for.")
        await self._keys.owned(listing.key_id, listing.acting_for)

    async def _read(
        self, listing: EntryListing, size: int, *, after: int | None
    ) -> tuple[list[StoredLeaf], int | None]:
        """Return the rows of a page, and after which index to go on, if there may be more."""
        begin, last = await self._bounds(listing)
        position = begin if after is None else after
        rows: list[StoredLeaf] = []
        for _ in range(READINGS_MAX):
            page = await self._tree.find_leaves(
                LeafFilter(
                    subject=listing.subject,
                    kinds=[int(kind) for kind in listing.kinds],
                    after=position,
                    newest_first=listing.newest_first,
                    limit=size - len(rows) + 1,
                )
            )
            for row in page.leaves:
                if _is_past(row.audit_index, last, newest_first=listing.newest_first):
                    return rows, None
                if listing.is_in_time(row):
                    if len(rows) == size:
                        return rows, rows[-1].audit_index
                    rows.append(row)
            if page.read_to is None:
                return rows, None
            position = page.read_to
        return rows, position

    async def _bounds(self, listing: EntryListing) -> tuple[int, int | None]:
        """Return after which index to begin, and the last index that can be meant."""
        first = last = None
        if listing.start_time is not None:
            first = await self._index_at(listing.start_time, -CLOCKS_APART_MAX)
        if listing.end_time is not None:
            last = await self._index_at(listing.end_time, CLOCKS_APART_MAX)
        if listing.newest_first:
            return (0 if last is None else last + 1), first
        return (0 if first is None else max(first - 1, 0)), last

    async def _index_at(self, time: datetime, slack: timedelta) -> int:
        """Return about where in the log a time lies; `slack` is on the safe side of it."""
        with contextlib.suppress(OverflowError):
            time += slack
        low, high = 1, (await self._tree.state()).last_entry + 1
        while low < high:
            middle = (low + high) // 2
            rows = await self._tree.read_leaves(middle - 1, up_to=high, limit=READINGS_MAX)
            kept = next((row for row in rows if row.leaf), None)
            # Where nothing is kept that tells a time, the safe side is taken.
            is_before = slack > timedelta() if kept is None else read_entry(kept).time < time
            if is_before:
                low = middle + 1
            else:
                high = middle
        return low


def _is_past(audit_index: int, last: int | None, *, newest_first: bool) -> bool:
    if last is None:
        return False
    return audit_index < last if newest_first else audit_index > last
