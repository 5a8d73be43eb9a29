"""Shares and the set of halts in memory, beside the keys and bindings of one authority."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from keyvault.domain.audit_log import EntryKind
from keyvault.ports import HaltsChange, HaltsRow, HaltStore, PutResult, ShareChange, ShareFilter, ShareRow, ShareStore

if TYPE_CHECKING:
    from keyvault.adapters.memory import MemoryAuthority
    from keyvault.domain.requests import RecordedRequest


class MemorySharesAndHalts(ShareStore, HaltStore):
    """Shares and halts beside one authority in memory."""

    def __init__(self, authority: MemoryAuthority) -> None:
        """Keep the rows in `authority`, which leases on them."""
        self._authority = authority

    @override
    async def head(self) -> int:
        return await self._authority.head()

    @override
    async def find_request(self, scope: str, request_id: str) -> RecordedRequest | None:
        return await self._authority.find_request(scope, request_id)

    @override
    async def get_share(self, provider_key_id: str, agent_id: str) -> ShareRow | None:
        rows = self._authority.share_rows.get((provider_key_id, agent_id))
        return rows[-1] if rows else None

    @override
    async def get_share_at(self, provider_key_id: str, agent_id: str, audit_index: int) -> ShareRow | None:
        rows = self._authority.share_rows.get((provider_key_id, agent_id), [])
        return next((row for row in rows if row.seal.audit_index == audit_index), None)

    @override
    async def find_shares(self, share_filter: ShareFilter) -> list[ShareRow]:
        present = [rows[-1] for _, rows in sorted(self._authority.share_rows.items())]
        found = [
            row
            for row in present
            if row.provider_key_id == share_filter.provider_key_id
            and not row.is_ended
            and share_filter.agent_id in ("", row.agent_id)
            and row.agent_id > share_filter.after_agent_id
        ]
        return found[: share_filter.limit]

    @override
    async def put_share(self, change: ShareChange) -> PutResult:
        share = change.share
        parties = (share.provider_key_id, share.agent_id)
        rows = self._authority.share_rows.get(parties, [])
        seal = self._authority.begin_write(change, rows[-1].seal.audit_index if rows else 0)
        if isinstance(seal, PutResult):
            return seal
        row = ShareRow(*parties, is_ended=share.is_ended, record=change.record, seal=seal)
        self._authority.share_rows.setdefault(parties, []).append(row)
        return self._authority.end_write(change, seal, "/".join(parties))

    @override
    async def is_log_new(self) -> bool:
        return all(kind is EntryKind.KEYRING_CHANGED for kind, _ in self._authority.leaves)

    @override
    async def get_halts(self) -> HaltsRow | None:
        rows = self._authority.halts_rows
        return rows[-1] if rows else None

    @override
    async def get_halts_at(self, audit_index: int) -> HaltsRow | None:
        rows = self._authority.halts_rows
        return next((row for row in rows if row.seal.audit_index == audit_index), None)

    @override
    async def put_halts(self, change: HaltsChange) -> PutResult:
        rows = self._authority.halts_rows
        seal = self._authority.begin_write(change, rows[-1].seal.audit_index if rows else 0)
        if isinstance(seal, PutResult):
            return seal
        rows.append(HaltsRow(change.record, seal))
        return self._authority.end_write(change, seal, change.resource_id)
