"""Plans for keys, erasures and secrets as a whole, in memory: the rules of the ports by the plainest means."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from typing_extensions import override

from keyvault.domain.erasures import Erasure
from keyvault.domain.ownership import Account, AccountKind
from keyvault.domain.provider_keys import KeyState
from keyvault.ports import (
    ChangedKeys,
    Claim,
    CorruptionLog,
    ErasureStore,
    KeyCheckStore,
    KeyRow,
    NoticeEntry,
    SecretRow,
    SecretStore,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from keyvault.adapters.memory import MemoryAuthority
    from keyvault.domain.audit_log import AuditEntry
    from keyvault.domain.key_checks import KeyCheck
    from keyvault.domain.requests import RequestIdentity

_DOUBLINGS_MAX = 10


class MemoryKeyChecks(KeyCheckStore):
    """The plans for the keys of one authority in memory."""

    def __init__(self, authority: MemoryAuthority) -> None:
        """Plan for the keys of `authority`."""
        self._authority = authority
        self._position = 0
        self._checks: dict[str, KeyCheck] = {}
        self._claimed_until: dict[str, datetime] = {}
        self._claimed_at: dict[str, datetime] = {}
        self._noticed: set[tuple[str, datetime, timedelta]] = set()

    @override
    async def read_changed(self, limit: int) -> ChangedKeys:
        rows = [row for row in _present(self._authority) if row.seal.audit_index > self._position]
        rows = sorted(rows, key=lambda row: row.seal.audit_index)[:limit]
        is_complete = len(rows) < limit
        head = await self._authority.head()
        return ChangedKeys(
            position=self._position,
            next_position=head if is_complete else rows[-1].seal.audit_index,
            rows=tuple(rows),
            is_complete=is_complete,
        )

    @override
    async def checks_of(self, provider_key_ids: Sequence[str]) -> list[KeyCheck]:
        return [self._checks[key_id] for key_id in provider_key_ids if key_id in self._checks]

    @override
    async def plan(self, checks: Sequence[KeyCheck], ended: Sequence[str], changed: ChangedKeys) -> None:
        for check in checks:
            before = self._checks.get(check.provider_key_id)
            if before is None or before.planned_index < check.planned_index:
                if before is None or _of_test(before) != _of_test(check):
                    self._claimed_until.pop(check.provider_key_id, None)
                self._checks[check.provider_key_id] = check
        for key_id in ended:
            self._checks.pop(key_id, None)
        if self._position == changed.position:
            self._position = changed.next_position

    @override
    async def claim(self, claim: Claim) -> list[str]:
        recent = [self._checks[key_id] for key_id, at in self._claimed_at.items() if at > claim.now - claim.window]
        used = Counter(check.provider for check in recent)
        claimed: list[str] = []
        for check in sorted(self._due(claim), key=lambda each: str(each.next_check_time)):
            is_full = len(claimed) >= min(claim.claims_max, claim.total_max - len(recent))
            if is_full or used[check.provider] >= claim.provider_max:
                continue
            used[check.provider] += 1
            claimed.append(check.provider_key_id)
        for key_id in claimed:
            check = self._checks[key_id]
            self._claimed_at[key_id], self._claimed_until[key_id] = claim.now, claim.now + claim.life
            again = claim.now + claim.life * 2 ** min(check.attempts, _DOUBLINGS_MAX)
            self._checks[key_id] = replace(check, attempts=check.attempts + 1, next_check_time=again)
        return claimed

    def _due(self, claim: Claim) -> list[KeyCheck]:
        return [
            check
            for key_id, check in self._checks.items()
            if check.provider in claim.providers
            and check.next_check_time is not None
            and check.next_check_time <= claim.now
            and self._claimed_until.get(key_id, claim.now) <= claim.now
        ]

    @override
    async def put_off(self, provider_key_ids: Sequence[str], until: datetime) -> None:
        for key_id in provider_key_ids:
            self._claimed_until.pop(key_id, None)
            self._checks[key_id] = replace(self._checks[key_id], next_check_time=until)

    @override
    async def next_due_time(self, providers: Sequence[str]) -> datetime | None:
        times = [
            check.next_check_time
            for check in self._checks.values()
            if check.provider in providers and check.next_check_time is not None
        ]
        return min(times, default=None)

    @override
    async def find_expired(self, now: datetime, limit: int) -> list[str]:
        found = [check for check in self._checks.values() if check.expire_time is not None and check.expire_time <= now]
        return [check.provider_key_id for check in sorted(found, key=lambda each: str(each.expire_time))][:limit]

    @override
    async def forget_expiry(self, provider_key_ids: Sequence[str], now: datetime) -> None:
        for key_id in set(provider_key_ids) & set(await self.find_expired(now, len(self._checks))):
            self._checks[key_id] = replace(self._checks[key_id], expire_time=None, next_notice_time=None)

    @override
    async def find_notices(self, now: datetime, limit: int) -> list[str]:
        found = [
            check
            for check in self._checks.values()
            if check.next_notice_time is not None and check.next_notice_time <= now
        ]
        return [check.provider_key_id for check in sorted(found, key=lambda each: str(each.next_notice_time))][:limit]

    @override
    async def forget_notices(self, provider_key_ids: Sequence[str], now: datetime) -> None:
        for key_id in set(provider_key_ids) & set(await self.find_notices(now, len(self._checks))):
            self._checks[key_id] = replace(self._checks[key_id], next_notice_time=None)

    @override
    async def append_notices(self, notices: Sequence[NoticeEntry]) -> int:
        appended = 0
        for each in notices:
            key_id, notice = each.entry.provider_key_id, each.notice
            row = await self._authority.get(key_id)
            if row is None or row.seal.audit_index != each.key_index:
                continue
            name = (key_id, notice.expire_time, notice.threshold)
            if name not in self._noticed:
                self._noticed.add(name)
                await self._authority.append([each.entry])
                appended += 1
            self._checks[key_id] = replace(self._checks[key_id], next_notice_time=notice.next_notice_time)
        return appended


class MemoryErasures(ErasureStore):
    """Erasures of the owners of one authority in memory; `backups` holds (snapshot time, expire time)."""

    def __init__(self, authority: MemoryAuthority) -> None:
        """Erase in `authority`."""
        self._authority = authority
        self._erasures: list[Erasure] = []
        self._requests: dict[tuple[str, str], int] = {}
        self.backups: list[tuple[datetime, datetime]] = []

    @override
    async def begin(self, owner_id: str, *, entry: AuditEntry, request: RequestIdentity) -> int:
        name = (request.scope, request.request_id)
        if name in self._requests:
            return self._requests[name]
        last = await self.get(owner_id)
        if last is None or self._has_newer_keys(last):
            mine = [row.found_by.provider_key_id for row in _present(self._authority) if _is_of(row, owner_id)]
            erased = [self._authority.secrets.pop(key_id, None) for key_id in mine]
            index = await self._authority.append([entry])
            last = Erasure(
                owner_id=owner_id,
                begin_index=index,
                caller=entry.caller,
                actor=entry.actor,
                erased_keys=sum(secret is not None for secret in erased),
                last_index=index,
                create_time=entry.time,
                finish_time=None,
                backups_expire_time=None,
            )
            self._erasures.append(last)
        self._requests[name] = last.begin_index
        return last.begin_index

    def _has_newer_keys(self, erasure: Erasure) -> bool:
        return any(
            _is_unrevoked_of(row, erasure.owner_id) and self._first_index(row) > erasure.begin_index
            for row in _present(self._authority)
        )

    def _first_index(self, row: KeyRow) -> int:
        return self._authority.key_rows[row.found_by.provider_key_id][0].seal.audit_index

    @override
    async def get(self, owner_id: str, begin_index: int | None = None) -> Erasure | None:
        mine = [each for each in self._erasures if each.owner_id == owner_id]
        if begin_index is not None:
            mine = [each for each in mine if each.begin_index == begin_index]
        if not mine:
            return None
        expiry = [expires for taken, expires in self.backups if taken < mine[-1].create_time]
        return replace(mine[-1], backups_expire_time=max(expiry, default=None))

    @override
    async def unfinished(self, limit: int) -> Sequence[Erasure]:
        return [each for each in self._erasures if each.finish_time is None][:limit]

    @override
    async def unrevoked(self, erasure: Erasure, *, after_key_id: str, limit: int) -> list[KeyRow]:
        rows = [
            row
            for row in _present(self._authority)
            if _is_unrevoked_of(row, erasure.owner_id)
            and self._first_index(row) <= erasure.begin_index
            and row.found_by.provider_key_id > after_key_id
        ]
        return sorted(rows, key=lambda row: row.found_by.provider_key_id)[:limit]

    @override
    async def finish(self, erasure: Erasure, now: datetime) -> None:
        revoked = [
            row.seal.audit_index
            for row in _present(self._authority)
            if _is_of(row, erasure.owner_id) and row.found_by.state == KeyState.REVOKED
        ]
        self._erasures = [
            replace(each, finish_time=now, last_index=max([each.begin_index, *revoked]))
            if (each.owner_id, each.begin_index, each.finish_time) == (erasure.owner_id, erasure.begin_index, None)
            else each
            for each in self._erasures
        ]


class MemorySecrets(SecretStore):
    """Sealed secrets of one authority in memory."""

    def __init__(self, authority: MemoryAuthority) -> None:
        """Read `authority`."""
        self._authority = authority

    @override
    async def find_equal(self, provider_key_id: str, *, owned_by: Account | None, limit: int) -> list[KeyRow]:
        mine = self._authority.secrets.get(provider_key_id)
        if mine is None:
            return []
        wanted = (mine[1].equality_mac_version, mine[1].equality_mac)
        found = [
            row
            for row in _present(self._authority)
            if (secret := self._authority.secrets.get(row.found_by.provider_key_id)) is not None
            and row.found_by.provider_key_id != provider_key_id
            and (secret[1].equality_mac_version, secret[1].equality_mac) == wanted
            and owned_by in (None, Account(AccountKind(row.found_by.owner_kind), row.found_by.owner_id))
        ]
        return sorted(found, key=lambda row: row.found_by.provider_key_id)[:limit]

    @override
    async def walk(self, after: tuple[str, int], limit: int) -> list[SecretRow]:
        rows = {row.found_by.provider_key_id: row for row in _present(self._authority)}
        found = []
        for key_id, (version, secret) in sorted(self._authority.secrets.items()):
            row = rows.get(key_id)
            is_present = row is not None and row.found_by.key_version == version
            if (key_id, version) > after:
                found.append(
                    SecretRow(
                        provider_key_id=key_id,
                        key_version=version,
                        wrapped_dek=secret.envelope.wrapped_dek,
                        kek_version=secret.envelope.kek_version,
                        key=row if is_present else None,
                    )
                )
        return found[:limit]


class MemoryCorruptionLog(CorruptionLog):
    """Findings in the log of one authority in memory."""

    def __init__(self, authority: MemoryAuthority) -> None:
        """Append to the log of `authority`."""
        self._authority = authority
        self._found: set[tuple[str, str, int]] = set()

    @override
    async def append_corruption(self, row_id: str, what: str, row_index: int, entry: AuditEntry) -> bool:
        name = (row_id, what, row_index)
        if name in self._found:
            return False
        self._found.add(name)
        await self._authority.append([entry])
        return True


def _of_test(check: KeyCheck) -> tuple[datetime | None, int]:
    return (check.validate_time, check.key_version)


def _present(authority: MemoryAuthority) -> list[KeyRow]:
    return [rows[-1] for rows in authority.key_rows.values()]


def _is_of(row: KeyRow, owner_id: str) -> bool:
    return (row.found_by.owner_kind, row.found_by.owner_id) == (int(AccountKind.OWNER), owner_id)


def _is_unrevoked_of(row: KeyRow, owner_id: str) -> bool:
    return _is_of(row, owner_id) and row.found_by.state != KeyState.REVOKED
