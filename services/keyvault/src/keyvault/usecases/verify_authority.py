"""Every present authority row, authenticated and compared with the log: the part of VerifyLog that is about rows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from keyvault.domain.errors import AuthorityForgedError
from keyvault.domain.log_verification import Finding, FindingKind, Findings, LogCheck
from keyvault.domain.row_history import RowFinding, RowKind, judge_entry, judge_row
from keyvault.usecases.verify_rows import VerifyRows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from keyvault.domain.row_history import RowId
    from keyvault.ports import (
        BindingStore,
        HaltStore,
        KeyringSource,
        ProviderKeyStore,
        RowHistory,
        RowState,
        ShareStore,
    )

_PAGE: Final = 100
_KINDS: Final = {
    RowFinding.ROLLED_BACK: FindingKind.ROW_ROLLED_BACK,
    RowFinding.MISSING: FindingKind.ROW_MISSING,
    # A row whose entry is not in the log: the log was cut, or the row came from somewhere else.
    RowFinding.UNRECORDED: FindingKind.ROW_FORGED,
    RowFinding.BLANKED: FindingKind.LEAF_EDITED,
}


class VerifyAuthority:
    """The comparison of one database."""

    def __init__(
        self,
        history: RowHistory,
        *,
        keys: ProviderKeyStore,
        bindings: BindingStore,
        shares: ShareStore,
        halts: HaltStore,
        keyring: KeyringSource,
    ) -> None:
        """Compare what `history` reads; authenticate the rows of the other stores."""
        self._history = history
        self._keys = keys
        self._bindings = bindings
        self._shares = shares
        self._halts = halts
        # Of its own, so that a pass over all rows does not push out what leases verified.
        self._verify = VerifyRows(keyring, cached_rows_max=1)

    async def __call__(self, findings: Findings) -> AsyncIterator[int]:
        """Yield how many rows were looked at, from time to time. Raises UnavailableError when the store is away."""
        done = 0
        for kind in RowKind:
            after, is_more = "", True
            while is_more:
                rows = await self._history.read_rows(kind, after, _PAGE)
                for state in rows:
                    found = judge_row(row_index=state.row_index, newest_entry_index=state.newest_entry_index)
                    _note(findings, found, state.row, state.newest_entry_index or state.row_index)
                await self._authenticate(kind, rows, findings)
                done += len(rows)
                is_more = len(rows) == _PAGE
                after = rows[-1].row.name if rows else ""
                yield done
        async for looked_at in self._compare_entries(findings):
            yield done + looked_at

    async def _compare_entries(self, findings: Findings) -> AsyncIterator[int]:
        after, done, is_more = 0, 0, True
        while is_more:
            entries = await self._history.read_entries(after, _PAGE)
            for state in entries:
                found = judge_entry(is_row_there=state.is_row_there, is_blank=state.is_blank)
                _note(findings, found, state.row, state.audit_index)
            done += len(entries)
            is_more = len(entries) == _PAGE
            after = entries[-1].audit_index if entries else after
            yield done

    async def _authenticate(self, kind: RowKind, rows: Sequence[RowState], findings: Findings) -> None:
        for state in rows:
            try:
                await self._authenticate_one(kind, state.row.name)
            except AuthorityForgedError as error:
                finding = Finding(FindingKind.ROW_FORGED, state.row_index, error.message, str(state.row))
                findings.add(LogCheck.ROWS, finding)
            await asyncio.sleep(0)

    async def _authenticate_one(self, kind: RowKind, name: str) -> None:
        if kind is RowKind.KEY and (key := await self._keys.get(name)):
            await self._verify.key(key)
        elif kind is RowKind.BINDING and (binding := await self._bindings.get_binding(name)):
            await self._verify.binding(binding)
        elif kind is RowKind.SHARE and (share := await self._shares.get_share(*name.split("/", 1))):
            await self._verify.share(share)
        elif kind is RowKind.HALTS and (halts := await self._halts.get_halts()):
            await self._verify.halts(halts)


def _note(findings: Findings, found: RowFinding | None, row: RowId, audit_index: int) -> None:
    if found is not None:
        findings.add(LogCheck.ROWS, Finding(_KINDS[found], audit_index, found.value, str(row)))
