"""Where the root key lives is away: replicas that run go on, and none can start; once it is back, they can."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from keyvault.domain.errors import RootKeyUnavailableError, RootKeyUnusableError
from keyvault.settings import AwsKmsSettings, Pkcs11Settings, RootKeySettings, VaultTransitSettings
from servicekit.errors import DomainError
from services.keyvault.tests.integration.vault import SECRET, agent_item
from testkit.kms import ACCESS_KEY_ID, SECRET_ACCESS_KEY, EmbeddedKms
from testkit.vault.admin import VaultAdmin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.keyvault.tests.integration.vault import Vault
    from testkit.softhsm import SoftHsm
    from testkit.vault.server import FakeVault

BRIEF: dict[str, Any] = {"timeout": timedelta(seconds=10), "attempts_max": 2}


@dataclass
class Provider:
    """A root key that can be taken away and put back."""

    settings: RootKeySettings
    take_away: Callable[[], Awaitable[None]]
    put_back: Callable[[], Awaitable[None]]
    refused_with: type[DomainError] = RootKeyUnavailableError


@contextlib.asynccontextmanager
async def in_a_file(directory: Path) -> AsyncIterator[Provider]:
    """Give a root key whose file can be unmounted."""
    path = directory / "root.key"
    path.write_text("5f" * 32)
    path.chmod(0o400)
    away = directory / "away"

    async def take_away() -> None:
        path.rename(away)

    async def put_back() -> None:
        away.rename(path)

    yield Provider(RootKeySettings(file=path), take_away, put_back, RootKeyUnusableError)


@contextlib.asynccontextmanager
async def on_a_token(softhsm: SoftHsm, label: str) -> AsyncIterator[Provider]:
    """Give a root key whose token can be pulled out."""
    softhsm.make_token(label)
    softhsm.make_key(label, "root")
    away = softhsm.tokens_dir.with_name("away")

    async def take_away() -> None:
        softhsm.tokens_dir.rename(away)
        softhsm.tokens_dir.mkdir()

    async def put_back() -> None:
        softhsm.tokens_dir.rmdir()
        away.rename(softhsm.tokens_dir)

    token = Pkcs11Settings(module=softhsm.module, token_label=label, key_label="root", pin_file=softhsm.pin_file)
    yield Provider(RootKeySettings(provider="pkcs11", pkcs11=token, **BRIEF), take_away, put_back)


@contextlib.asynccontextmanager
async def in_aws_kms(kms_server: EmbeddedKms) -> AsyncIterator[Provider]:
    """Give a root key whose front can be shut; what stands behind would forget its keys."""
    async with contextlib.AsyncExitStack() as stack:
        front = await stack.enter_async_context(kms_server.front())

        async def take_away() -> None:
            await front.__aexit__(None, None, None)

        async def put_back() -> None:
            await stack.enter_async_context(front)

        key = AwsKmsSettings(key_arn=kms_server.make_key(), endpoint_url=front.endpoint_url)
        yield Provider(RootKeySettings(provider="aws_kms", aws_kms=key, **BRIEF), take_away, put_back)


@contextlib.asynccontextmanager
async def in_a_transit_engine(server: FakeVault, directory: Path) -> AsyncIterator[Provider]:
    """Give a root key whose server can be stopped."""
    admin = VaultAdmin(server.address, server.token)
    await admin.mount_transit("transit")
    await admin.make_key("transit", "byok")
    await admin.set_policy("keyvault", ["transit/encrypt/byok", "transit/decrypt/byok"])
    token_file = directory / "token"
    token_file.write_text(await admin.make_token("keyvault"))
    token_file.chmod(0o400)

    async def take_away() -> None:
        await server.__aexit__(None, None, None)

    async def put_back() -> None:
        await server.__aenter__()

    vault = VaultTransitSettings(address=server.address, key="byok", token_file=token_file)
    yield Provider(RootKeySettings(provider="vault_transit", vault_transit=vault, **BRIEF), take_away, put_back)


@pytest.fixture(params=["file", "pkcs11", "aws_kms", "vault_transit"])
async def provider(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    softhsm: SoftHsm,
    kms_server: EmbeddedKms,
    fake_vault: FakeVault,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Provider]:
    """Give each provider in turn."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
    async with contextlib.AsyncExitStack() as stack:
        match request.param:
            case "file":
                opened = in_a_file(tmp_path)
            case "pkcs11":
                opened = on_a_token(softhsm, f"outage-{tmp_path.name}"[:32])
            case "aws_kms":
                opened = in_aws_kms(kms_server)
            case _:
                opened = in_a_transit_engine(fake_vault, tmp_path)
        yield await stack.enter_async_context(opened)


async def test_replicas_run_on_without_the_root_key_and_none_starts(
    provider: Provider, start_vault: Callable[..., Awaitable[Vault]]
) -> None:
    """The root key is used at the start alone: its outage stops nobody who runs, and is told to whoever starts."""
    running = await start_vault(root_key=provider.settings)
    await running.bind()
    await running.working_key()
    router = await running.router()
    await provider.take_away()
    assert router.open(await router.acquire(agent_item()))[0].secret == SECRET
    with pytest.raises(provider.refused_with) as caught:
        await start_vault(root_key=provider.settings)
    assert type(caught.value) is provider.refused_with
    await running.bind("agent-2", "owner-2")
    assert router.open(await router.acquire(agent_item()))[0].secret == SECRET
    await provider.put_back()
    later = await start_vault(root_key=provider.settings)
    later_router = await later.router()
    assert later_router.open(await later_router.acquire(agent_item()))[0].secret == SECRET


async def test_a_keyring_of_one_provider_is_not_opened_by_another(
    provider: Provider, start_vault: Callable[..., Awaitable[Vault]], root_key_file: Path, tmp_path: Path
) -> None:
    """Another provider's key in the settings stops the start; beside the right one, as the next, it does not."""
    other = tmp_path / "other.key"
    other.write_text("a7" * 32)
    other.chmod(0o400)
    await start_vault(root_key=provider.settings)
    with pytest.raises(RootKeyUnusableError) as caught:
        await start_vault(root_key=RootKeySettings(file=other))
    assert str(caught.value.facts["root_key_id"]).startswith(provider.settings.provider.replace("_", "-"))
    await start_vault(root_key=provider.settings, next_root_key=RootKeySettings(file=other))
    await start_vault(root_key=RootKeySettings(file=other), next_root_key=provider.settings)


async def test_the_next_root_key_must_be_another(
    start_vault: Callable[..., Awaitable[Vault]], root_key_file: Path
) -> None:
    """A rotation to the key that is in use is a mistake in the settings."""
    settings = RootKeySettings(file=root_key_file)
    with pytest.raises(RootKeyUnusableError, match="next_root_key"):
        await start_vault(root_key=settings, next_root_key=settings)
