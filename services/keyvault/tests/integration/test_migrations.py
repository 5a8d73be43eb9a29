"""Migrations: applied once, by whoever comes first, and never guessed about."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest

from keyvault.adapters.postgres.schema import migrate, shipped_migrations
from keyvault.domain.errors import RootKeyUnusableError, SchemaNotReadyError
from keyvault.settings import RootKeySettings
from services.keyvault.tests.integration.vault import SECRET, Vault, agent_item

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from keyvault.settings import Settings
    from testkit.pki import ThrowawayCa

NAMES = [migration.name for migration in shipped_migrations()]


async def test_migrating_twice_changes_nothing(postgres_database: str) -> None:
    """The first run applies everything, the second nothing."""
    assert await migrate(postgres_database) == NAMES
    assert await migrate(postgres_database) == []


async def test_replicas_may_migrate_at_once(postgres_database: str) -> None:
    """Of several that start together one applies each migration, and none fails."""
    applied = await asyncio.gather(*(migrate(postgres_database) for _ in range(4)))
    assert sorted(name for names in applied for name in names) == sorted(NAMES)


async def test_a_changed_migration_is_refused(postgres_database: str) -> None:
    """Nobody can say what a database holds whose migration was changed after it was applied."""
    await migrate(postgres_database)
    connection = await asyncpg.connect(postgres_database)
    await connection.execute("UPDATE schema_migrations SET sha256 = 'other'")
    await connection.close()
    with pytest.raises(SchemaNotReadyError):
        await migrate(postgres_database)


async def test_a_database_without_the_schema_is_not_served(
    postgres_database: str, throwaway_ca: ThrowawayCa, vault_settings: Callable[..., Settings]
) -> None:
    """Production migrates by command: serving says which one, and start-up may do it in the demo only."""
    settings = vault_settings(postgres_database)
    with pytest.raises(SchemaNotReadyError, match="python -m keyvault migrate"):
        async with Vault(settings, throwaway_ca, postgres_database).running():
            pass
    settings = vault_settings(postgres_database, migrate_on_start=True)
    async with Vault(settings, throwaway_ca, postgres_database).running():
        pass


async def test_another_root_key_does_not_serve(
    start_vault: Callable[..., Awaitable[Vault]], vault: Vault, tmp_path: Path
) -> None:
    """A replica with another root key, or another deployment's name, stops at its start; the right one serves."""
    await vault.bind()
    await vault.working_key()
    other = tmp_path / "root.key"
    other.write_text("00" * 32)
    other.chmod(0o400)
    with pytest.raises(RootKeyUnusableError):
        await start_vault(root_key=RootKeySettings(file=other))
    with pytest.raises(RootKeyUnusableError):
        await start_vault(deployment="other")
    replica = await start_vault()
    router = await replica.router()
    assert router.open(await router.acquire(agent_item()))[0].secret == SECRET
