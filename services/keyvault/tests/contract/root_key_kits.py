"""The providers of root keys under test, each with its key in place and ways to be away."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from keyvault.adapters.root_keys.aws_kms import AwsKmsOptions, open_aws_kms
from keyvault.adapters.root_keys.file import FileRootKey
from keyvault.adapters.root_keys.pkcs11 import Pkcs11RootKey
from keyvault.adapters.root_keys.pkcs11_module import TokenOptions
from keyvault.adapters.root_keys.vault_login import RoleLogin, TokenFileLogin
from keyvault.adapters.root_keys.vault_transit import VaultTransitOptions, open_vault_transit
from servicekit.secrets import Secret
from services.keyvault.tests.contract.root_key_contract import LIMITS, attempts
from testkit.kms import SECRET_ACCESS_KEY, KmsFront
from testkit.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from keyvault.adapters.root_keys.attempts import Attempts
    from keyvault.ports import RootKey
    from testkit.kms import EmbeddedKms
    from testkit.softhsm import SoftHsm
    from testkit.vault.admin import VaultAdmin


@contextlib.asynccontextmanager
async def silent_port() -> AsyncIterator[int]:
    """Give a port that takes connections and never says a word."""
    writers: list[asyncio.StreamWriter] = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read()

    server = await asyncio.start_server(keep, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()


class FileKit:
    """Root keys as `read_root_key` makes them."""

    provider = "file"

    async def open(self, name: str = "first") -> RootKey:
        return FileRootKey(Secret(f"canary-root-key-{name:-<16}"))

    def secrets(self) -> Sequence[str]:
        return ["canary-root-key-"]


class Pkcs11Kit:
    """Root keys on tokens of SoftHSM2."""

    provider = "pkcs11"

    def __init__(self, softhsm: SoftHsm, stack: contextlib.ExitStack, directory: Path) -> None:
        self._softhsm = softhsm
        self._stack = stack
        self._directory = directory

    def root(self, token: str = "main", key: str = "first", *, asked: Attempts | None = None, pin: str = "") -> RootKey:
        """Return a root key, with another PIN than the right one if given."""
        pin_file = self._softhsm.pin_file
        if pin:
            pin_file = self._directory / "pin"
            pin_file.write_text(pin)
            pin_file.chmod(0o400)
        options = TokenOptions(module=self._softhsm.module, token_label=token, key_label=key)
        return Pkcs11RootKey(options, pin_file=pin_file, attempts=asked or attempts())

    async def open(self, name: str = "first") -> RootKey:
        return self.root(key=name)

    async def open_away(self) -> RootKey:
        return self.root("nowhere", asked=attempts(LIMITS))

    async def open_hanging(self) -> RootKey:
        self._stack.callback(self._softhsm.hold().kill9)
        return self.root(asked=attempts(LIMITS))

    async def open_refused(self) -> RootKey:
        return self.root(asked=attempts(LIMITS), pin="canary-wrong-pin-1212")

    def secrets(self) -> Sequence[str]:
        return [self._softhsm.pin_file.read_text().strip(), "canary-wrong-pin-1212"]


class AwsKmsKit:
    """Root keys in moto's AWS KMS."""

    provider = "aws-kms"

    def __init__(self, server: EmbeddedKms, keys: dict[str, str], stack: contextlib.AsyncExitStack) -> None:
        self._server = server
        self._keys = keys
        self._stack = stack

    async def root(
        self, name: str = "first", *, endpoint_url: str | None = None, asked: Attempts | None = None
    ) -> RootKey:
        """Return a root key, elsewhere than at the server if so said."""
        options = AwsKmsOptions(key_arn=self._keys[name], endpoint_url=endpoint_url or self._server.endpoint_url)
        return await self._stack.enter_async_context(open_aws_kms(options, attempts=asked or attempts()))

    async def front(self) -> KmsFront:
        """Return a front that answers with errors of AWS when told to."""
        return await self._stack.enter_async_context(KmsFront(self._server))

    async def open(self, name: str = "first") -> RootKey:
        return await self.root(name)

    async def open_away(self) -> RootKey:
        return await self.root(endpoint_url=f"http://127.0.0.1:{free_port()}", asked=attempts(LIMITS))

    async def open_hanging(self) -> RootKey:
        port = await self._stack.enter_async_context(silent_port())
        return await self.root(endpoint_url=f"http://127.0.0.1:{port}", asked=attempts(LIMITS))

    async def open_refused(self) -> RootKey:
        front = await self.front()
        front.faults += [(400, "AccessDeniedException")] * 100
        return await self.root(endpoint_url=front.endpoint_url, asked=attempts(LIMITS))

    def secrets(self) -> Sequence[str]:
        return [SECRET_ACCESS_KEY]


class VaultKit:
    """Root keys in a transit engine, for a token that may do nothing else."""

    provider = "vault-transit"

    def __init__(self, admin: VaultAdmin, directory: Path, stack: contextlib.AsyncExitStack, mount: str) -> None:
        self.admin = admin
        self.mount = mount
        self._stack = stack
        self._tokens: list[str] = []
        self.token_file = directory / "token"

    async def set_up(self) -> None:
        """Make the engine, keys in it, and a token for them."""
        await self.admin.mount_transit(self.mount)
        paths = [
            f"{self.mount}/{verb}/{key}" for key in ("first", "second", "later") for verb in ("encrypt", "decrypt")
        ]
        for key in ("first", "second"):
            await self.admin.make_key(self.mount, key)
        await self.admin.set_policy(self.mount, paths)
        self.show(await self.admin.make_token(self.mount))

    def show(self, token: str) -> None:
        """Put a token where the root key looks for it."""
        self._tokens.append(token)
        self.token_file.unlink(missing_ok=True)
        self.token_file.write_text(token + "\n")
        self.token_file.chmod(0o440)

    async def root(
        self,
        name: str = "first",
        *,
        address: str | None = None,
        login: TokenFileLogin | RoleLogin | None = None,
        asked: Attempts | None = None,
        namespace: str | None = None,
        ca_file: Path | None = None,
    ) -> RootKey:
        """Return a root key, elsewhere or by another login if so said."""
        options = VaultTransitOptions(
            address=address or self.admin.address,
            key=name,
            login=login or TokenFileLogin(token_file=self.token_file),
            mount=self.mount,
            namespace=namespace,
            ca_file=ca_file,
        )
        return await self._stack.enter_async_context(open_vault_transit(options, attempts=asked or attempts()))

    async def open(self, name: str = "first") -> RootKey:
        return await self.root(name)

    async def open_away(self) -> RootKey:
        return await self.root(address=f"http://127.0.0.1:{free_port()}", asked=attempts(LIMITS))

    async def open_hanging(self) -> RootKey:
        port = await self._stack.enter_async_context(silent_port())
        return await self.root(address=f"http://127.0.0.1:{port}", asked=attempts(LIMITS))

    async def open_refused(self) -> RootKey:
        self.show("hvs.canary-not-a-token-000000")
        return await self.root(asked=attempts(LIMITS))

    def secrets(self) -> Sequence[str]:
        return self._tokens
