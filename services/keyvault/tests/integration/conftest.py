"""A KeyVault of its own for each test: real Postgres, real gRPC, mutual TLS from a throw-away CA."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from keyvault.adapters.postgres.schema import migrate
from keyvault.settings import PostgresSettings, RevocationSettings, RootKeySettings, Settings
from servicekit.settings import ServerSettings, TlsSettings
from services.keyvault.tests.integration.vault import Vault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from testkit.pki import ThrowawayCa


@pytest.fixture(scope="session")
def root_key_file(testkit_dir: Path) -> Path:
    """Return a root key in a file."""
    path = testkit_dir / "keyvault-root.key"
    path.write_text("5f" * 32)
    path.chmod(0o400)
    return path


@pytest.fixture
async def migrated_dsn(postgres_database: str) -> str:
    """Return a database with this release's schema."""
    await migrate(postgres_database)
    return postgres_database


@pytest.fixture
async def start_vault(
    migrated_dsn: str, throwaway_ca: ThrowawayCa, root_key_file: Path
) -> AsyncIterator[Callable[..., Awaitable[Vault]]]:
    """Return a coroutine function that starts a replica on this test's database."""
    tls = throwaway_ca.issue("keyvault", uri="spiffe://byok.local/ns/byok/sa/keyvault")
    async with contextlib.AsyncExitStack() as stack:

        async def start(**changes: Any) -> Vault:
            usual: dict[str, Any] = {
                "server": ServerSettings(
                    tls=TlsSettings(certificate_file=tls.certificate, private_key_file=tls.private_key, ca_file=tls.ca),
                    drain_grace=timedelta(seconds=2),
                ),
                "postgres": PostgresSettings(dsn=SecretStr(migrated_dsn), pool_max=4),
                "root_key": RootKeySettings(file=root_key_file),
                "deployment": "test",
                "allowed_private_hosts": ("localhost:8443",),
                "revocation": RevocationSettings(partition_bound=timedelta(seconds=1)),
            }
            vault = Vault(Settings(**(usual | changes)), throwaway_ca, migrated_dsn)
            return await stack.enter_async_context(vault.running())

        yield start


@pytest.fixture
async def vault(start_vault: Callable[..., Awaitable[Vault]]) -> Vault:
    """Return a running KeyVault."""
    return await start_vault()
