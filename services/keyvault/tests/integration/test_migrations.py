"""Migrations: applied once, by whoever comes first, and never guessed about."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import SecretStr

from byok.keyvault.v1 import key_service_pb2, lease_service_pb2
from keyvault.adapters.postgres.schema import migrate, shipped_migrations
from keyvault.app import apply_migrations
from keyvault.domain.errors import RootKeyUnusableError, SchemaNotReadyError
from keyvault.settings import HealthSettings, PostgresSettings, RootKeySettings
from servicekit.clock import SystemClock
from services.keyvault.tests.integration.vault import SECRET, Vault, agent_item, new_id, owner, revoke_request
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from keyvault.settings import Settings
    from testkit.pki import ThrowawayCa

REWRITES = [
    "UPDATE audit_entries SET kind = 102",
    "DELETE FROM audit_entries",
    "TRUNCATE audit_entries",
    "DELETE FROM audit_head",
    "UPDATE agent_ai_keys SET state = 2",
    "DELETE FROM agent_ai_keys",
    "UPDATE agent_bindings SET owner_id = 'x'",
    "DELETE FROM agent_bindings",
    "DELETE FROM keyring_keys",
    "UPDATE keyring_keys SET wrapped_key = 'x'",
    "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
    "SET session_replication_role = replica",
    "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
]
OFTEN = HealthSettings(
    interval=timedelta(milliseconds=100),
    walk_interval=timedelta(milliseconds=100),
    walk_pause=timedelta(milliseconds=10),
)
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


async def test_the_serving_role_can_append_and_nothing_more(
    migrated_dsn: str, throwaway_ca: ThrowawayCa, vault_settings: Callable[..., Settings]
) -> None:
    """Served by a role of its own, everything works; that role rewrites neither the log nor authority."""
    role = f"serving_{uuid.uuid4().hex}"
    superuser = await asyncpg.connect(migrated_dsn)
    await superuser.execute(f"CREATE ROLE {role} LOGIN")
    await apply_migrations(vault_settings(migrated_dsn, postgres=_as(migrated_dsn, serving_role=role)))
    try:
        settings = vault_settings(_dsn_of(migrated_dsn, role), health=OFTEN)
        async with Vault(settings, throwaway_ca, migrated_dsn).running() as vault:
            await vault.bind()
            key = await vault.working_key()
            router = await vault.router()
            assert router.open(await router.acquire(agent_item()))[0].secret == SECRET
            await (await vault.keys()).RevokeKey(revoke_request(key.key_id))
            await use_key_health(vault)
        served = await asyncpg.connect(_dsn_of(migrated_dsn, role))
        for edit in REWRITES:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await served.execute(edit)
        await served.close()
    finally:
        await superuser.execute(f"DROP OWNED BY {role}")
        await superuser.execute(f"DROP ROLE {role}")
        await superuser.close()


async def use_key_health(vault: Vault) -> None:
    """Have a key planned, claimed, noticed and erased, and rows compared with the log."""
    ends = Timestamp(seconds=int(SystemClock().now().timestamp()) + 3600)
    await vault.working_key(expire_time=ends)
    noticed = "SELECT count(*) FROM agent_ai_key_checks JOIN expiry_notices USING (provider_key_id)"
    await eventually(lambda: vault.sql(noticed), lambda rows: rows[0][0] == 1)
    router = await vault.router()
    await router.leases.ClaimKeysForValidation(
        lease_service_pb2.ClaimKeysForValidationRequest(
            holder=router.holder, recipient_public_key=router.key.public_key().public_bytes_raw()
        )
    )
    await (await vault.keys()).EraseOwner(
        key_service_pb2.EraseOwnerRequest(request_id=new_id(), acting_for=owner(), actor="test", owner_id="owner-1")
    )
    passes = vault.metrics.registry.get_sample_value("keyvault_self_audits")

    async def walked() -> float | None:
        return vault.metrics.registry.get_sample_value("keyvault_self_audits")

    await eventually(walked, lambda found: found is not None and passes is not None and found > passes)
    assert vault.metrics.registry.get_sample_value("keyvault_worker_failures") == 0
    assert vault.metrics.registry.get_sample_value("keyvault_rolled_back_rows") == 0


def _as(dsn: str, **fields: str) -> PostgresSettings:
    return PostgresSettings(dsn=SecretStr(dsn), pool_max=4, **fields)  # type: ignore[arg-type]  # names of roles


def _dsn_of(dsn: str, role: str) -> str:
    parts = urlsplit(dsn)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{role}@{place}"))
