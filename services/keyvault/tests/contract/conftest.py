"""A pool on a database of each test's own, and the providers of root keys."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from keyvault.adapters.postgres.pool import Database, PostgresOptions, open_database
from services.keyvault.tests.contract.root_key_kits import AwsKmsKit, Pkcs11Kit, VaultKit
from testkit.kms import ACCESS_KEY_ID, SECRET_ACCESS_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from testkit.kms import EmbeddedKms
    from testkit.softhsm import SoftHsm
    from testkit.vault.admin import VaultAdmin


@pytest.fixture
async def database(migrated_dsn: str) -> AsyncIterator[Database]:
    """Return a pool on a database with this release's schema."""
    options = PostgresOptions(
        dsn=migrated_dsn,
        pool_min=1,
        pool_max=4,
        connect_timeout=timedelta(seconds=10),
        statement_timeout=timedelta(seconds=10),
    )
    async with open_database(options) as opened:
        yield opened


@pytest.fixture(scope="session")
def tokens(softhsm: SoftHsm) -> SoftHsm:
    """Return a folder with a token and keys on it."""
    softhsm.make_token("main")
    for key in ("first", "second"):
        softhsm.make_key("main", key)
    return softhsm


@pytest.fixture
def pkcs11_kit(tokens: SoftHsm, tmp_path: Path) -> Iterator[Pkcs11Kit]:
    """Return the provider; what holds its calls up is ended after the test."""
    with contextlib.ExitStack() as stack:
        yield Pkcs11Kit(tokens, stack, tmp_path)


@pytest.fixture(scope="session")
def kms_keys(kms_server: EmbeddedKms) -> dict[str, str]:
    """Return ARNs of keys by name."""
    return {name: kms_server.make_key() for name in ("first", "second")}


@pytest.fixture
async def aws_kms_kit(
    kms_server: EmbeddedKms, kms_keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AwsKmsKit]:
    """Return the provider, on a machine that has credentials."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
    async with contextlib.AsyncExitStack() as stack:
        yield AwsKmsKit(kms_server, kms_keys, stack)


@pytest.fixture
async def vault_kit(vault_admin: VaultAdmin, tmp_path: Path) -> AsyncIterator[VaultKit]:
    """Return the provider, with an engine of this test's own."""
    async with contextlib.AsyncExitStack() as stack:
        kit = VaultKit(vault_admin, tmp_path, stack, mount=f"byok-{tmp_path.parent.name}-{tmp_path.name}".lower())
        await kit.set_up()
        yield kit
