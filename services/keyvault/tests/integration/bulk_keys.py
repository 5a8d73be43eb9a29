"""Many keys at once: truly sealed secrets under authentic rows with their entries, copied into a database.

Two hundred thousand calls would take minutes; what is stored is what those calls would have stored.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import asyncpg

from keyvault.adapters.postgres.keyring import PostgresKeyringStore
from keyvault.adapters.postgres.pool import PostgresOptions, open_database
from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.authority import RowSeal, seal_window
from keyvault.domain.bindings import AgentBinding, encode_binding
from keyvault.domain.envelope import seal
from keyvault.domain.keyring import KeyPurpose
from keyvault.domain.leaf_seals import LeafSealer
from keyvault.domain.ownership import Account, AccountKind, Holder, Scope
from keyvault.domain.provider_keys import Custody, KeyState, ProviderKey, encode_key
from keyvault.domain.submitted_secrets import equality_mac
from keyvault.usecases.hold_keyring import unwrap_records
from keyvault.usecases.verify_rows import found_by
from servicekit.clock import SystemClock
from servicekit.secrets import Secret

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from keyvault.domain.keyring import Keyring
    from keyvault.ports import RootKey

_CHUNK = 5_000
_CALLER = "spiffe://byok.local/ns/byok/sa/test"


def agent_of(number: int) -> str:
    """Return the agent of a key."""
    return f"agent-{number:08d}"


def secret_of(number: int) -> bytes:
    """Return the secret of a key."""
    return b"sk-ant-api03-%08d-0123456789abcdefghijklmnop" % number


class _Writer:
    """Writes rows in the order of their entries, in one transaction that keeps all others out of the log."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record], ring: Keyring, now: datetime) -> None:
        self._connection = connection
        self._ring = ring
        self._now = now
        self._seal_leaf = LeafSealer(lambda: ring).seal
        self._mac_version = ring.primary(KeyPurpose.EQUALITY_MAC).version

    async def write(self, numbers: range, last_index: int) -> int:
        """Write keys and bindings after `last_index`; return the new one."""
        tables: dict[str, list[tuple[Any, ...]]] = {
            "agent_ai_keys": [],
            "agent_ai_key_secrets": [],
            "agent_bindings": [],
            "audit_entries": [],
        }
        for number in numbers:
            self._add_key(tables, number, last_index + 1)
            self._add_binding(tables, number, last_index + 2)
            last_index += 2
        for table, columns in _COLUMNS.items():
            await self._connection.copy_records_to_table(table, records=tables[table], columns=columns)
        return last_index

    def _add_key(self, tables: dict[str, list[tuple[Any, ...]]], number: int, index: int) -> None:
        secret = Secret(secret_of(number))
        key = ProviderKey(
            provider_key_id=f"0192f0c1-2f00-7000-8000-{number:012d}",
            holder=Holder(Scope.OWNER, Account(AccountKind.OWNER, f"owner-{number:08d}")),
            provider="anthropic",
            base_url="https://api.anthropic.com",
            label="",
            priority=100,
            mapping=(),
            custody=Custody.CACHED,
            state=KeyState.ACTIVE,
            state_reason="",
            cool_down_until=None,
            key_version=1,
            fingerprint="0123456789abcdef",
            secret_suffix="mnop",
            validated_models=(),
            validated_operations=(),
            create_time=self._now,
            update_time=self._now,
            validate_time=self._now,
        )
        columns = found_by(key)
        record = encode_key(key)
        tables["agent_ai_keys"].append(
            (index, record, *self._sealed(record, index), *(getattr(columns, name) for name in columns.__slots__))
        )
        envelope = seal(secret, context=key.envelope_context(self._ring.deployment), kek=self._ring.primary_kek())
        mac = equality_mac(self._ring, secret, version=self._mac_version)
        tables["agent_ai_key_secrets"].append(
            (
                key.provider_key_id,
                1,
                envelope.sealed_secret,
                envelope.wrapped_dek,
                envelope.kek_version,
                self._mac_version,
                mac,
            )
        )
        entry = AuditEntry(
            kind=EntryKind.KEY_CREATED,
            time=self._now,
            caller=_CALLER,
            provider_key_id=key.provider_key_id,
            key_version=1,
            key_state=int(KeyState.ACTIVE),
            account=key.holder.owned_by,
        )
        tables["audit_entries"].append(self._entry(entry, index))

    def _add_binding(self, tables: dict[str, list[tuple[Any, ...]]], number: int, index: int) -> None:
        account = Account(AccountKind.OWNER, f"owner-{number:08d}")
        binding = AgentBinding(agent_id=agent_of(number), owner_id=account.party_id, account=account, binding_version=1)
        record = encode_binding(binding)
        tables["agent_bindings"].append(
            (index, record, *self._sealed(record, index), binding.agent_id, binding.owner_id)
        )
        entry = AuditEntry(
            kind=EntryKind.AGENT_BOUND, time=self._now, caller=_CALLER, agent_id=binding.agent_id, account=account
        )
        tables["audit_entries"].append(self._entry(entry, index))

    def _sealed(self, record: bytes, index: int) -> tuple[int, bytes]:
        sealed = seal_window(self._ring, record, first_index=index, length=1).seal_at(index)
        assert isinstance(sealed, RowSeal)
        return sealed.mac_key_version, sealed.mac

    def _entry(self, entry: AuditEntry, index: int) -> tuple[Any, ...]:
        leaf = self._seal_leaf(entry)
        return index, int(entry.kind), entry.subject, leaf, hashlib.sha256(b"\x00" + leaf).digest()


_SEALED = ("audit_index", "record", "mac_key_version", "mac")
_COLUMNS = {
    "agent_ai_keys": (
        *_SEALED,
        "provider_key_id",
        "scope",
        "owner_kind",
        "owner_id",
        "agent_id",
        "provider",
        "base_url",
        "priority",
        "state",
        "key_version",
    ),
    "agent_ai_key_secrets": (
        "provider_key_id",
        "key_version",
        "sealed_secret",
        "wrapped_dek",
        "kek_version",
        "equality_mac_version",
        "equality_mac",
    ),
    "agent_bindings": (*_SEALED, "agent_id", "owner_id"),
    "audit_entries": ("audit_index", "kind", "subject", "leaf", "leaf_hash"),
}


async def keyring_of(dsn: str, *, deployment: str, root: RootKey, patience: timedelta) -> Keyring:
    """Return the keyring that a database holds."""
    options = PostgresOptions(dsn=dsn, pool_min=1, pool_max=1, connect_timeout=patience, statement_timeout=patience)
    async with open_database(options) as database:
        return await unwrap_records(deployment, await PostgresKeyringStore(database).load(), [root])


async def load_keys(dsn: str, ring: Keyring, count: int, *, first: int = 0) -> None:
    """Store keys number `first` to `count` - 1, each with an owner and an agent of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            last_index = await connection.fetchval("SELECT last_index FROM audit_head FOR UPDATE")
            writer = _Writer(connection, ring, SystemClock().now())
            for start in range(first, count, _CHUNK):
                last_index = await writer.write(range(start, min(start + _CHUNK, count)), last_index)
            await connection.execute("UPDATE audit_head SET last_index = $1", last_index)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()
