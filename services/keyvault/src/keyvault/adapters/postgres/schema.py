"""Migrations: numbered SQL files, each applied once, in order, in a transaction of its own.

The lock is one of the transaction, not of the session: poolers break the latter. A file that was changed after it was
applied is refused, because nobody could say what the database holds.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg

from keyvault.adapters.postgres.pool import FAILURES
from keyvault.domain.errors import SchemaNotReadyError
from servicekit.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyvault.adapters.postgres.pool import Database

_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_LOCK: Final = 0x6B65797661756C74
"""ASCII of `keyvault`: the advisory lock that one migrating process holds."""

_BOOKKEEPING: Final = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    sha256     text        NOT NULL,
    apply_time timestamptz NOT NULL DEFAULT now()
)
"""


# Locking a row FOR SHARE or FOR UPDATE takes the right to update one of its columns.
_GRANTS: Final = {
    "schema_migrations": "SELECT",
    "audit_head": "SELECT, UPDATE (last_index)",
    "audit_entries": "SELECT, INSERT",
    "audit_tiles": "SELECT, INSERT",
    "audit_checkpoints": "SELECT, INSERT, DELETE",
    "agent_ai_keys": "SELECT, INSERT, UPDATE (superseded_index)",
    "agent_bindings": "SELECT, INSERT, UPDATE (superseded_index)",
    "key_shares": "SELECT, INSERT, UPDATE (superseded_index)",
    "halt_sets": "SELECT, INSERT, UPDATE (superseded_index)",
    "agent_ai_key_secrets": "SELECT, INSERT, UPDATE, DELETE",
    "keyring_keys": "SELECT, INSERT, UPDATE (state, update_time)",
    "keyring_replicas": "SELECT, INSERT, UPDATE, DELETE",
    "backups": "SELECT, INSERT, UPDATE",
    "rewraps": "SELECT, UPDATE",
    "FUNCTION destroy_keyring_key": "EXECUTE",
    "FUNCTION rotate_root_key": "EXECUTE",
    "agent_ai_key_checks": "SELECT, INSERT, UPDATE, DELETE",
    "worker_positions": "SELECT, INSERT, UPDATE",
    "expiry_notices": "SELECT, INSERT",
    "erasures": "SELECT, INSERT, UPDATE (finish_time, last_index)",
    "corruption_reports": "SELECT, INSERT",
    "requests": "SELECT, INSERT, DELETE",
    "watchers": "SELECT, INSERT, UPDATE, DELETE",
}


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Return the hash by which a changed file is told."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def shipped_migrations() -> list[Migration]:
    """Return the migrations of this release, in order."""
    found = []
    for path in sorted(_directory().iterdir()):
        matched = _NAME.fullmatch(path.name)
        if matched is not None:
            found.append(Migration(int(matched[1]), matched[2], path.read_text(encoding="utf-8")))
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise SchemaNotReadyError("the migrations of this release are not numbered from 1 without gaps")
    return found


async def migrate(dsn: str) -> Sequence[str]:
    """Apply what is missing, and return the names of what was applied. Safe to run on several machines at once.

    Raises:
        UnavailableError: the database cannot be reached, or a migration failed; nothing of that one was applied.
        SchemaNotReadyError: an applied file was changed, or the database is of a newer release.
    """
    connection = await _connect(dsn)
    try:
        return [migration.name for migration in shipped_migrations() if await _apply(connection, migration)]
    except FAILURES as error:
        raise UnavailableError("a migration failed and was rolled back", failure=type(error).__name__) from error
    finally:
        await connection.close()


async def grant(dsn: str, role: str) -> None:
    """Let `role` do what a serving process does, and no more: it can rewrite neither the log nor authority.

    Raises:
        UnavailableError: the database cannot be reached, or there is no such role.
    """
    connection = await _connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute(f'GRANT USAGE ON SCHEMA public TO "{role}"')
            for table, privileges in _GRANTS.items():
                await connection.execute(f'REVOKE ALL ON {table} FROM "{role}"')
                await connection.execute(f'GRANT {privileges} ON {table} TO "{role}"')
    except FAILURES as error:
        raise UnavailableError("the grants failed and were rolled back", failure=type(error).__name__) from error
    finally:
        await connection.close()


async def check_schema(database: Database) -> None:
    """Raise SchemaNotReadyError unless the database carries the schema of this release."""
    shipped = shipped_migrations()
    exists = await database.fetch_value("SELECT to_regclass('schema_migrations') IS NOT NULL")
    rows = await database.fetch("SELECT version, sha256 FROM schema_migrations") if exists else []
    applied = {row["version"]: row["sha256"] for row in rows}
    for migration in shipped:
        if migration.version not in applied:
            raise SchemaNotReadyError(
                "the database lacks a migration; run: python -m keyvault migrate", version=migration.version
            )
        _ensure_unchanged(migration, applied[migration.version])


async def _connect(dsn: str) -> asyncpg.Connection[asyncpg.Record]:
    try:
        return await asyncpg.connect(dsn)
    except FAILURES as error:
        raise UnavailableError("the database cannot be reached", failure=type(error).__name__) from error


async def _apply(connection: asyncpg.Connection[asyncpg.Record], migration: Migration) -> bool:
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        await connection.execute(_BOOKKEEPING)
        applied = await connection.fetchval(
            "SELECT sha256 FROM schema_migrations WHERE version = $1", migration.version
        )
        if applied is not None:
            _ensure_unchanged(migration, applied)
            return False
        await connection.execute(migration.sql)
        await connection.execute(
            "INSERT INTO schema_migrations (version, name, sha256) VALUES ($1, $2, $3)",
            migration.version,
            migration.name,
            migration.sha256,
        )
    return True


def _ensure_unchanged(migration: Migration, applied_sha256: str) -> None:
    if applied_sha256 != migration.sha256:
        raise SchemaNotReadyError(
            "a migration was changed after it was applied; install the release that applied it",
            version=migration.version,
        )


def _directory() -> Path:
    package = Path(__file__).parents[2]
    # Inside the wheel the folder lies in the package; in the tree it lies beside `src`.
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parents[1] / "migrations"
