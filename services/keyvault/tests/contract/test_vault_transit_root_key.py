"""What the root key in a transit engine promises beyond the contract: logins, key versions, and a server's moods.

`vault_kit` is on the server in BYOK_TEST_VAULT_ADDR if set; what no real server can be told to do is done by the fake.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import pytest

from keyvault.adapters.root_keys.vault_login import RoleLogin
from keyvault.domain.errors import RootKeyUnavailableError, RootKeyUnusableError
from services.keyvault.tests.contract.root_key_contract import ATTEMPTS, DATA, LIMITS, attempts, secret
from services.keyvault.tests.contract.root_key_kits import VaultKit
from testkit.vault.admin import VaultAdmin
from testkit.vault.server import FakeVault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from testkit.pki import ThrowawayCa


@pytest.fixture
async def fake_kit(fake_vault: FakeVault, tmp_path: Path) -> AsyncIterator[VaultKit]:
    """Return the provider on the fake, whatever else is at hand."""
    async with contextlib.AsyncExitStack() as stack:
        kit = VaultKit(VaultAdmin(fake_vault.address, fake_vault.token), tmp_path, stack, mount="transit")
        await kit.set_up()
        fake_vault.requests.clear()
        yield kit


async def app_role(kit: VaultKit, directory: Path) -> RoleLogin:
    """Return a login by AppRole that may use the kit's keys."""
    mount = f"{kit.mount}-approle"
    await kit.admin.enable_auth("approle", mount=mount)
    role_id, secret_id = await kit.admin.make_app_role(mount, "keyvault", kit.mount)
    secret_id_file = directory / "secret-id"
    secret_id_file.write_text(secret_id)
    secret_id_file.chmod(0o440)
    return RoleLogin(method="approle", mount=mount, role=role_id, secret_file=secret_id_file)


async def kubernetes_role(kit: VaultKit, vault: FakeVault, directory: Path) -> RoleLogin:
    """Return a login by the token of a service account that the cluster vouches for."""
    await kit.admin.enable_auth("kubernetes", mount="kubernetes")
    await kit.admin.make_kubernetes_role("kubernetes", "keyvault", kit.mount, service_account="byok-keyvault")
    jwt_file = directory / "jwt"
    jwt_file.write_text("canary.service-account.jwt")
    # As Kubernetes mounts it.
    jwt_file.chmod(0o644)
    vault.jwts["canary.service-account.jwt"] = "byok-keyvault"
    return RoleLogin(method="kubernetes", mount="kubernetes", role="keyvault", secret_file=jwt_file)


async def test_app_role_logs_in(vault_kit: VaultKit, tmp_path: Path) -> None:
    """A role id and a secret id are enough."""
    root = await vault_kit.root(login=await app_role(vault_kit, tmp_path))
    assert await root.unwrap(await root.wrap(secret(), DATA), DATA) == secret()


async def test_a_secret_id_that_is_refused_is_told(vault_kit: VaultKit, tmp_path: Path) -> None:
    """A secret id that has run out is no wrong root key."""
    login = await app_role(vault_kit, tmp_path)
    login.secret_file.chmod(0o600)
    login.secret_file.write_text("canary-old-secret-id")
    login.secret_file.chmod(0o440)
    root = await vault_kit.root(login=login, asked=attempts(LIMITS))
    with pytest.raises(RootKeyUnavailableError, match="approle"):
        await root.wrap(secret(), DATA)


async def test_a_service_account_logs_in(fake_kit: VaultKit, fake_vault: FakeVault, tmp_path: Path) -> None:
    """In Kubernetes no secret is handed out at all; another service account is refused."""
    login = await kubernetes_role(fake_kit, fake_vault, tmp_path)
    root = await fake_kit.root(login=login)
    assert await root.unwrap(await root.wrap(secret(), DATA), DATA) == secret()
    fake_vault.jwts["canary.service-account.jwt"] = "somebody-else"
    with pytest.raises(RootKeyUnavailableError, match="kubernetes"):
        await (await fake_kit.root(login=login)).wrap(secret(), DATA)


async def test_many_calls_log_in_once(fake_kit: VaultKit, fake_vault: FakeVault, tmp_path: Path) -> None:
    """A start asks for every version of the keyring at once, by one login."""
    root = await fake_kit.root(login=await kubernetes_role(fake_kit, fake_vault, tmp_path))
    await asyncio.gather(*(root.wrap(secret(), DATA) for _ in range(12)))
    assert fake_vault.requests.count("auth/kubernetes/login") == 1


async def test_a_token_that_has_run_out_is_replaced(fake_kit: VaultKit, fake_vault: FakeVault, tmp_path: Path) -> None:
    """Between a start and a rotation a token runs out; the next call logs in again, once."""
    root = await fake_kit.root(login=await kubernetes_role(fake_kit, fake_vault, tmp_path))
    wrapped = await root.wrap(secret(), DATA)
    held = fake_vault.forget_tokens()
    assert held > 0
    unwrapped = await asyncio.gather(*(root.unwrap(wrapped, DATA) for _ in range(6)))
    assert unwrapped == [secret()] * 6
    assert fake_vault.requests.count("auth/kubernetes/login") == 2


async def test_a_token_in_a_file_may_be_replaced(vault_kit: VaultKit) -> None:
    """An agent that keeps the file fresh needs nobody to start anything again."""
    root = await vault_kit.root(asked=attempts(LIMITS))
    wrapped = await root.wrap(secret(), DATA)
    old = vault_kit.secrets()[-1]
    vault_kit.show(await vault_kit.admin.make_token(vault_kit.mount))
    await vault_kit.admin.revoke_token(old)
    assert await root.unwrap(wrapped, DATA) == secret()
    vault_kit.show(old)
    with pytest.raises(RootKeyUnavailableError, match="permission is denied"):
        await root.unwrap(wrapped, DATA)


async def test_versions_of_the_transit_key_are_its_own_business(vault_kit: VaultKit) -> None:
    """After a rotation there both versions open, until the older one is forbidden."""
    root = await vault_kit.root(asked=attempts(LIMITS))
    old = await root.wrap(secret(), DATA)
    await vault_kit.admin.rotate_key(vault_kit.mount, "first")
    new = await root.wrap(secret(), DATA)
    assert (old[:9], new[:9]) == (b"vault:v1:", b"vault:v2:")
    assert [await root.unwrap(each, DATA) for each in (old, new)] == [secret()] * 2
    await vault_kit.admin.set_min_decryption_version(vault_kit.mount, "first", 2)
    assert await root.unwrap(new, DATA) == secret()
    with pytest.raises(RootKeyUnusableError, match="min_decryption_version"):
        await root.unwrap(old, DATA)


async def test_two_names_of_one_version_are_not_both_read(vault_kit: VaultKit) -> None:
    """The engine reads version 0 as 1, and passes over line ends; what is stored has one form."""
    root = await vault_kit.root()
    wrapped = (await root.wrap(secret(), DATA)).decode()
    same = [wrapped.replace(":v1:", ":v0:"), wrapped.replace(":v1:", ":v01:"), wrapped[:20] + "\n" + wrapped[20:]]
    for other in same:
        with pytest.raises(RootKeyUnusableError, match="no ciphertext"):
            await root.unwrap(other.encode(), DATA)


async def test_wrapping_makes_no_key(vault_kit: VaultKit) -> None:
    """The engine would create a key that is not there; the policy that the docs tell to use does not let it."""
    root = await vault_kit.root("misspelt", asked=attempts(LIMITS))
    with pytest.raises(RootKeyUnavailableError, match="permission is denied"):
        await root.wrap(secret(), DATA)


async def test_a_namespace_is_another_place(fake_kit: VaultKit, fake_vault: FakeVault) -> None:
    """The same names in a namespace are another root key."""
    admin = VaultAdmin(fake_vault.address, fake_vault.token, namespace="team/byok")
    await admin.mount_transit("transit")
    await admin.make_key("transit", "first")
    fake_kit.show(fake_vault.token)
    outside, inside = await fake_kit.root(), await fake_kit.root(namespace="team/byok")
    assert (outside.root_key_id, inside.root_key_id) == (
        "vault-transit:transit/first",
        "vault-transit:team/byok/transit/first",
    )
    wrapped = await inside.wrap(secret(), DATA)
    assert await inside.unwrap(wrapped, DATA) == secret()
    with pytest.raises(RootKeyUnusableError):
        await outside.unwrap(wrapped, DATA)


async def test_a_server_that_ignores_associated_data_is_refused(fake_kit: VaultKit, fake_vault: FakeVault) -> None:
    """Vault before 1.13 would let keys of the ring change places: nothing is wrapped by it."""
    fake_vault.ignores_associated_data = True
    with pytest.raises(RootKeyUnusableError, match=r"1\.13"):
        await (await fake_kit.root()).wrap(secret(), DATA)


@pytest.mark.parametrize(
    ("status", "kind", "asked"),
    [
        (400, RootKeyUnusableError, 1),
        (404, RootKeyUnusableError, 1),
        (403, RootKeyUnavailableError, 1),
        (405, RootKeyUnavailableError, 1),
        (307, RootKeyUnavailableError, 1),
        (412, RootKeyUnavailableError, ATTEMPTS),
        (429, RootKeyUnavailableError, ATTEMPTS),
        (500, RootKeyUnavailableError, ATTEMPTS),
        (502, RootKeyUnavailableError, ATTEMPTS),
        (503, RootKeyUnavailableError, ATTEMPTS),
    ],
)
async def test_what_the_server_answers_is_told_apart(
    fake_kit: VaultKit, fake_vault: FakeVault, status: int, kind: type[Exception], asked: int
) -> None:
    """What asking again cannot mend is asked once; what may pass is asked again; the server's own words stay there."""
    root = await fake_kit.root(asked=attempts(LIMITS))
    wrapped = await root.wrap(secret(), DATA)
    fake_vault.requests.clear()
    fake_vault.faults += [(status, "canary words of the server")] * 10
    with pytest.raises(kind) as caught:
        await root.unwrap(wrapped, DATA)
    assert type(caught.value) is kind
    assert len(fake_vault.requests) == asked
    assert "canary" not in str(caught.value)


async def test_a_server_without_a_leader_for_a_moment_is_asked_again(fake_kit: VaultKit, fake_vault: FakeVault) -> None:
    """One bad answer is no reason not to start; a sealed server is, and the error says so."""
    root = await fake_kit.root(asked=attempts(LIMITS))
    fake_vault.faults.append((500, "local node not active but active cluster node not found"))
    wrapped = await root.wrap(secret(), DATA)
    fake_vault.is_sealed = True
    with pytest.raises(RootKeyUnavailableError, match="sealed"):
        await root.unwrap(wrapped, DATA)


async def test_a_redirect_is_not_followed(fake_kit: VaultKit, fake_vault: FakeVault) -> None:
    """Whoever can answer in the server's place does not get the token and the key sent elsewhere."""
    async with FakeVault() as elsewhere:
        fake_vault.moved_to = elsewhere.address
        with pytest.raises(RootKeyUnavailableError, match="redirects"):
            await (await fake_kit.root(asked=attempts(LIMITS))).wrap(secret(), DATA)
        assert elsewhere.requests == []


async def test_only_a_server_of_the_authority_is_spoken_to(throwaway_ca: ThrowawayCa, tmp_path: Path) -> None:
    """A server whose certificate the authority did not sign gets neither token nor key."""
    tls = throwaway_ca.issue("vault")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.certificate, tls.private_key)
    async with FakeVault(tls=context) as server, contextlib.AsyncExitStack() as stack:
        kit = VaultKit(VaultAdmin(server.address, server.token, ca_file=tls.ca), tmp_path, stack, mount="transit")
        await kit.set_up()
        root = await kit.root(ca_file=tls.ca)
        assert await root.unwrap(await root.wrap(secret(), DATA), DATA) == secret()
        server.requests.clear()
        with pytest.raises(RootKeyUnavailableError, match="certificate"):
            await (await kit.root(asked=attempts(LIMITS))).wrap(secret(), DATA)
        assert server.requests == []


async def test_a_missing_file_of_the_authority_is_told(vault_kit: VaultKit, tmp_path: Path) -> None:
    """A misspelt path of the authority's certificate stops the start."""
    with pytest.raises(RootKeyUnusableError, match="ca_file"):
        await vault_kit.root(ca_file=tmp_path / "missing")
