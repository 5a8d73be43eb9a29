"""A KeyVault of its own for each test: real Postgres, real gRPC, mutual TLS from a throw-away CA."""

from __future__ import annotations

import contextlib
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from keyvault.settings import PostgresSettings, RevocationSettings, RootKeySettings, Settings
from servicekit.settings import ServerSettings, TlsSettings
from services.keyvault.tests.integration.vault import Vault
from testkit.pki import TRUST_DOMAIN
from testkit.postgres import create_database, drop_database, dsn_of_database

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


@pytest.fixture(scope="session")
def vault_settings(throwaway_ca: ThrowawayCa, root_key_file: Path) -> Callable[..., Settings]:
    """Return the function that makes usual settings for a database, with changes."""
    tls = throwaway_ca.issue("keyvault", uri="spiffe://byok.local/ns/byok/sa/keyvault")

    def make(dsn: str, **changes: Any) -> Settings:
        usual: dict[str, Any] = {
            "server": ServerSettings(
                tls=TlsSettings(certificate_file=tls.certificate, private_key_file=tls.private_key, ca_file=tls.ca),
                trust_domain=TRUST_DOMAIN,
                drain_grace=timedelta(seconds=2),
            ),
            "postgres": PostgresSettings(dsn=SecretStr(dsn), pool_max=4),
            "root_key": RootKeySettings(file=root_key_file),
            "deployment": "test",
            "allowed_private_hosts": ("localhost:8443",),
            "revocation": RevocationSettings(partition_bound=timedelta(seconds=1)),
        }
        return Settings(**(usual | changes))

    return make


@pytest.fixture
async def start_vault(
    migrated_dsn: str, throwaway_ca: ThrowawayCa, vault_settings: Callable[..., Settings]
) -> AsyncIterator[Callable[..., Awaitable[Vault]]]:
    """Return a coroutine function that starts a replica on this test's database."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**changes: Any) -> Vault:
            vault = Vault(vault_settings(migrated_dsn, **changes), throwaway_ca, migrated_dsn)
            return await stack.enter_async_context(vault.running())

        yield start


@pytest.fixture
async def vault(start_vault: Callable[..., Awaitable[Vault]]) -> Vault:
    """Return a running KeyVault of this test's own."""
    return await start_vault()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_vault(
    postgres_server: str,
    migrated_template: str,
    throwaway_ca: ThrowawayCa,
    vault_settings: Callable[..., Settings],
) -> AsyncIterator[Vault]:
    """Return one KeyVault for all tests that use owners of their own and tamper with nothing."""
    name = f"shared_{uuid.uuid4().hex}"
    await create_database(postgres_server, name, template=migrated_template)
    dsn = dsn_of_database(postgres_server, name)
    async with Vault(vault_settings(dsn), throwaway_ca, dsn).running() as vault:
        yield vault
    await drop_database(postgres_server, name)
