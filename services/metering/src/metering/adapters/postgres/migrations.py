"""Migrations: numbered SQL files, each run once, in order, in a transaction of its own."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import asyncpg

_NAME: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
# Any number, as long as all replicas use the same: they must not migrate at once.
_LOCK: Final = 0x4D455445


class MigrationChangedError(Exception):
    """A migration that was run before has another text now."""


def migrations_directory() -> Path:
    """Return the folder of the migrations: inside the package when installed, beside `src` in a clone."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parents[1] / "migrations"


async def migrate(dsn: str, directory: Path | None = None) -> list[str]:
    """Run what was not run yet and return its names.

    Raises:
        MigrationChangedError: One that was run has changed since.
    """
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations"
            " (version integer PRIMARY KEY, name text NOT NULL, digest text NOT NULL,"
            " run_time timestamptz NOT NULL DEFAULT now())"
        )
        done = {row["version"]: row["digest"] for row in await connection.fetch("SELECT * FROM schema_migrations")}
        applied = []
        for version, path in _files(directory or migrations_directory()):
            text = path.read_text()
            digest = hashlib.sha256(text.encode()).hexdigest()
            if version in done:
                if done[version] != digest:
                    raise MigrationChangedError(f"{path.name} was changed after it was run; write a new migration.")
                continue
            async with connection.transaction():
                await connection.execute(text)
                await connection.execute(
                    "INSERT INTO schema_migrations (version, name, digest) VALUES ($1, $2, $3)",
                    version,
                    path.name,
                    digest,
                )
            applied.append(path.name)
        return applied
    finally:
        # Ending the session also gives the lock back.
        await connection.close()


def _files(directory: Path) -> Iterator[tuple[int, Path]]:
    for path in sorted(directory.iterdir()):
        found = _NAME.fullmatch(path.name)
        if found:
            yield int(found[1]), path
