"""Every store in memory, for tests and for reading: what Postgres must do, without Postgres.

It holds the rules of `ports.py` by the plainest means. The port contract suites run against it and against Postgres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

from typing_extensions import override

from keyvault.domain.audit_log import AUTHORITY_KIND_END, AuditEntry, EntryKind, IndexedEntry, decode_leaf
from keyvault.domain.keyring import KeyPurpose, KeyringRecord, KeyState
from keyvault.domain.ownership import AccountKind, Scope
from keyvault.domain.provider_keys import KeyState as ProviderKeyState
from keyvault.domain.requests import RecordedRequest
from keyvault.ports import (
    AppendedLease,
    AuditLog,
    AuthorityChanges,
    AuthorityFeed,
    AuthorityQuery,
    AuthorityRows,
    BindingChange,
    BindingRow,
    BindingStore,
    HaltsChange,
    HaltsRow,
    KeyChange,
    KeyFilter,
    KeyringStore,
    KeyRow,
    LeaseGrant,
    LeaseLog,
    ProviderKeyStore,
    PutResult,
    SealedVersion,
    ShareChange,
    ShareRow,
    WatcherRegistry,
    WatcherReport,
)
from keyvault.usecases.verify_rows import found_by

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from keyvault.domain.authority import RowSeal
    from keyvault.domain.leaf_seals import LeafSealer
    from servicekit.clock import Clock

Change: TypeAlias = "KeyChange | BindingChange | ShareChange | HaltsChange"
_REVOKED = int(ProviderKeyState.REVOKED)


class MemoryKeyringStore(KeyringStore):
    """A keyring that lasts as long as the process."""

    def __init__(self) -> None:
        """Start without a keyring."""
        self.records: list[KeyringRecord] = []

    @override
    async def load(self) -> list[KeyringRecord]:
        return list(self.records)

    @override
    async def create(self, records: Sequence[KeyringRecord]) -> bool:
        stored = {(record.purpose, record.version) for record in self.records}
        new = [record for record in records if (record.purpose, record.version) not in stored]
        self.records = sorted([*self.records, *new], key=lambda record: (record.purpose, record.version))
        return len(new) > 0

    def is_primary(self, purpose: KeyPurpose, version: int) -> bool:
        """Return whether this version is stored as PRIMARY."""
        return any(
            record.state is KeyState.PRIMARY
            for record in self.records
            if (record.purpose, record.version) == (purpose, version)
        )

    def set_state(self, purpose: KeyPurpose, version: int, state: KeyState) -> None:
        """Store another state of one version."""
        self.records = [
            replace(record, state=state) if (record.purpose, record.version) == (purpose, version) else record
            for record in self.records
        ]


@dataclass(slots=True)
class _Watcher:
    acked_index: int
    usable_until: datetime


class MemoryAuthority(ProviderKeyStore, BindingStore, LeaseLog, AuditLog, AuthorityFeed):
    """Authority rows, secrets, request ids and the log."""

    def __init__(self, keyring: MemoryKeyringStore, sealer: LeafSealer) -> None:
        """Check KEK and HMAC versions against `keyring`; `sealer` makes the leaves of the log."""
        self._keyring = keyring
        self._seal = sealer.seal
        self.leaves: list[tuple[EntryKind, bytes]] = []
        self.key_rows: dict[str, list[KeyRow]] = {}
        self.binding_rows: dict[str, list[BindingRow]] = {}
        self.share_rows: dict[tuple[str, str], list[ShareRow]] = {}
        self.halts_rows: list[HaltsRow] = []
        self.secrets: dict[str, tuple[int, SealedVersion]] = {}
        self._requests: dict[tuple[str, str], RecordedRequest] = {}
        self._wakes: list[Callable[[], None]] = []

    @override
    async def head(self) -> int:
        return len(self.leaves)

    @override
    async def get(self, provider_key_id: str) -> KeyRow | None:
        return self._present(provider_key_id)

    @override
    async def get_at(self, provider_key_id: str, audit_index: int) -> KeyRow | None:
        rows = self.key_rows.get(provider_key_id, [])
        return next((row for row in rows if row.seal.audit_index == audit_index), None)

    @override
    async def get_many(self, provider_key_ids: Sequence[str]) -> list[KeyRow]:
        return [row for key_id in set(provider_key_ids) if (row := self._present(key_id)) is not None]

    @override
    async def find(self, key_filter: KeyFilter) -> list[KeyRow]:
        present = [rows[-1] for _, rows in sorted(self.key_rows.items())]
        found = [row for row in present if _matches(row, key_filter) and self._is_usable_by(row, key_filter.agent_id)]
        return found[: key_filter.limit]

    @override
    async def find_request(self, scope: str, request_id: str) -> RecordedRequest | None:
        return self._requests.get((scope, request_id))

    @override
    async def forget_requests(self, age: timedelta) -> None:
        """Keep them all: a test is younger than any age that is asked for."""

    @override
    async def put(self, change: KeyChange) -> PutResult:
        key_id = change.key.provider_key_id
        rows = self.key_rows.get(key_id, [])
        present = rows[-1].seal.audit_index if rows else 0
        kek_version = None if change.secret is None else change.secret.envelope.kek_version
        seal = self.begin_write(change, present, kek_version)
        if isinstance(seal, PutResult):
            return seal
        self.key_rows.setdefault(key_id, []).append(KeyRow(found_by(change.key), change.record, seal))
        if change.secret is not None:
            self.secrets[key_id] = (change.key.key_version, change.secret)
        if change.key.state is ProviderKeyState.REVOKED:
            self.secrets.pop(key_id, None)
        return self.end_write(change, seal, key_id)

    @override
    async def get_binding(self, agent_id: str) -> BindingRow | None:
        rows = self.binding_rows.get(agent_id)
        return rows[-1] if rows else None

    @override
    async def get_binding_at(self, agent_id: str, audit_index: int) -> BindingRow | None:
        rows = self.binding_rows.get(agent_id, [])
        return next((row for row in rows if row.seal.audit_index == audit_index), None)

    @override
    async def put_binding(self, change: BindingChange) -> PutResult:
        agent_id = change.binding.agent_id
        rows = self.binding_rows.get(agent_id, [])
        present = rows[-1].seal.audit_index if rows else 0
        seal = self.begin_write(change, present)
        if isinstance(seal, PutResult):
            return seal
        row = BindingRow(agent_id, change.binding.owner_id, change.record, seal)
        self.binding_rows.setdefault(agent_id, []).append(row)
        return self.end_write(change, seal, agent_id)

    @override
    async def read_authority(self, query: AuthorityQuery) -> AuthorityRows:
        bindings = [rows[-1] for agent_id, rows in self.binding_rows.items() if agent_id in query.agent_ids]
        owners = {binding.owner_id for binding in bindings}
        bindings += self._bindings_of(query.key_ids)
        present = [rows[-1] for rows in self.share_rows.values()]
        shares = [row for row in present if row.agent_id in query.agent_ids and not row.is_ended]
        shared = {row.provider_key_id for row in shares}
        keys = []
        for rows in self.key_rows.values():
            columns = rows[-1].found_by
            is_wanted = (
                (columns.scope == Scope.AGENT and columns.agent_id in query.agent_ids)
                or (columns.scope == Scope.OWNER and columns.owner_id in owners)
                or (columns.scope == Scope.ORGANIZATION and columns.provider_key_id in shared)
                or (columns.scope == Scope.PLATFORM and query.includes_platform)
            )
            if columns.provider_key_id in query.key_ids or (is_wanted and columns.state != _REVOKED):
                keys.append(rows[-1])
        halts = self.halts_rows[-1].seal if self.halts_rows else None
        return AuthorityRows(head=len(self.leaves), bindings=bindings, keys=keys, shares=shares, halts=halts)

    @override
    async def append_leases(self, grants: Sequence[LeaseGrant], *, halts_index: int) -> list[AppendedLease | None]:
        appended: list[AppendedLease | None] = []
        is_halts_present = bool(self.halts_rows) and self.halts_rows[-1].seal.audit_index == halts_index
        for grant in grants:
            secret = self._secret_of(grant) if is_halts_present else None
            if secret is None:
                appended.append(None)
            else:
                appended.append(AppendedLease(self._append([grant.entry]), secret.envelope))
        return appended

    @override
    async def append(self, entries: Sequence[AuditEntry]) -> int:
        return self._append(entries)

    @override
    async def read_changes(self, after: int, *, limit: int) -> AuthorityChanges:
        changes = [
            IndexedEntry(position, decode_leaf(leaf))
            for position, (kind, leaf) in enumerate(self.leaves, start=1)
            if position > after and kind < AUTHORITY_KIND_END
        ]
        return AuthorityChanges(
            head=len(self.leaves), changes=changes[:limit], is_complete=len(changes[:limit]) < limit
        )

    @override
    def on_change(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)

    def entries(self) -> list[AuditEntry]:
        """Return what is in the log."""
        return [decode_leaf(leaf) for _, leaf in self.leaves]

    def _bindings_of(self, key_ids: frozenset[str]) -> list[BindingRow]:
        present = [rows[-1] for _, rows in sorted(self.binding_rows.items())]
        found: dict[str, BindingRow] = {}
        for key_id in key_ids & self.key_rows.keys():
            columns = self.key_rows[key_id][-1].found_by
            if columns.scope == Scope.AGENT:
                fitting = [row for row in present if row.agent_id == columns.agent_id]
            else:
                fitting = [row for row in present if columns.scope == Scope.OWNER and row.owner_id == columns.owner_id]
            found.update({row.agent_id: row for row in fitting[:1]})
        return list(found.values())

    def _is_usable_by(self, row: KeyRow, agent_id: str) -> bool:
        columns = row.found_by
        if not agent_id or columns.scope in (Scope.OWNER, Scope.PLATFORM):
            return True
        shares = self.share_rows.get((columns.provider_key_id, agent_id), [])
        is_shared = bool(shares) and not shares[-1].is_ended
        return columns.agent_id == agent_id if columns.scope == Scope.AGENT else is_shared

    def _present(self, provider_key_id: str) -> KeyRow | None:
        rows = self.key_rows.get(provider_key_id)
        return rows[-1] if rows else None

    def _secret_of(self, grant: LeaseGrant) -> SealedVersion | None:
        row = self._present(grant.provider_key_id)
        if row is None or row.seal.audit_index != grant.key_index:
            return None
        if grant.agent_id:
            bindings = self.binding_rows.get(grant.agent_id)
            if not bindings or bindings[-1].seal.audit_index != grant.binding_index:
                return None
        if grant.share_index:
            shares = self.share_rows.get((grant.provider_key_id, grant.agent_id))
            if not shares or shares[-1].seal.audit_index != grant.share_index or shares[-1].is_ended:
                return None
        version, secret = self.secrets.get(grant.provider_key_id, (0, None))
        return secret if version == row.found_by.key_version else None

    def begin_write(self, change: Change, present: int, kek_version: int | None = None) -> RowSeal | PutResult:
        """Append the entry of a change and return the seal of its row, or why nothing is written."""
        refused = self._refused(change, present, kek_version)
        if refused is not None:
            return refused
        seal = change.window.seal_at(self._append([change.entry]))
        if seal is None:
            raise AssertionError("the window was checked before")
        return seal

    def end_write(self, change: Change, seal: RowSeal, resource_id: str) -> PutResult:
        """Remember the request id of a change, and return that it is written."""
        if change.request is not None:
            recorded = RecordedRequest(change.request, resource_id, seal.audit_index)
            self._requests[change.request.scope, change.request.request_id] = recorded
        return PutResult("WRITTEN", seal.audit_index)

    def _refused(self, change: Change, present: int, kek_version: int | None) -> PutResult | None:
        window, request = change.window, change.request
        is_primary = self._keyring.is_primary(KeyPurpose.AUTHORITY_MAC, window.mac_key_version)
        if kek_version is not None:
            is_primary = is_primary and self._keyring.is_primary(KeyPurpose.KEK, kek_version)
        if not is_primary:
            return PutResult("KEY_NOT_PRIMARY", 0)
        recorded = None if request is None else self._requests.get((request.scope, request.request_id))
        if recorded is not None:
            return PutResult("REPLAYED", recorded.audit_index)
        if present != change.expected_index:
            return PutResult("STALE", present)
        if window.seal_at(len(self.leaves) + 1) is None:
            return PutResult("WINDOW_MISSED", len(self.leaves))
        return None

    def _append(self, entries: Sequence[AuditEntry]) -> int:
        first = len(self.leaves) + 1
        self.leaves.extend((entry.kind, self._seal(entry)) for entry in entries)
        for wake in self._wakes:
            wake()
        return first


class MemoryWatcherRegistry(WatcherRegistry):
    """Watchers of one process."""

    def __init__(self, clock: Clock) -> None:
        """Measure bounds by `clock`."""
        self._clock = clock
        self._watchers: dict[tuple[str, str], _Watcher] = {}

    @override
    async def record(self, reports: Sequence[WatcherReport], bound: timedelta) -> None:
        for report in reports:
            now = self._clock.now()
            until = now + bound if report.awaits_echo else now
            watcher = self._watchers.setdefault((report.caller, report.holder), _Watcher(report.acked_index, until))
            watcher.acked_index = max(watcher.acked_index, report.acked_index)
            watcher.usable_until = max(watcher.usable_until, until)

    @override
    async def pending(self, audit_index: int) -> frozenset[tuple[str, str]]:
        now = self._clock.now()
        return frozenset(
            name
            for name, watcher in self._watchers.items()
            if watcher.acked_index < audit_index and watcher.usable_until > now
        )

    @override
    async def acknowledged(self, audit_index: int) -> frozenset[tuple[str, str]]:
        return frozenset(name for name, watcher in self._watchers.items() if watcher.acked_index >= audit_index)

    @override
    async def forget(self, idle: timedelta) -> None:
        oldest = self._clock.now() - idle
        self._watchers = {name: each for name, each in self._watchers.items() if each.usable_until >= oldest}


def _matches(row: KeyRow, key_filter: KeyFilter) -> bool:
    columns = row.found_by
    return (
        (AccountKind(columns.owner_kind), columns.owner_id) == (key_filter.account.kind, key_filter.account.party_id)
        and columns.provider_key_id > key_filter.after_key_id
        and (key_filter.include_revoked or columns.state != _REVOKED)
        and key_filter.provider in ("", columns.provider)
    )
