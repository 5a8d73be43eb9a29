"""What each provider of the root key takes to wrap and unwrap, and what a start costs with it.

The suite is not loaded: a root key is used at starts and rotations alone. Where a provider is a stand-in, the figure is
the adapter's own cost and the stand-in's, and says so; a real one adds its network.
"""

import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Final

from bench.room import Room
from bench.rows import Row, row_of
from bench.suite import Suite
from keyvault.domain.keyring import KeyPurpose, KeyringRecord, KeyState, draw_key
from keyvault.ports import RootKey
from keyvault.settings import (
    AwsKmsSettings,
    Pkcs11Settings,
    RootKeySettings,
    VaultTransitSettings,
)
from keyvault.usecases.hold_keyring import unwrap_records, wrap_key, wrap_new_keys
from keyvault.wiring.root_keys import open_root_key
from servicekit.clock import SystemClock
from servicekit.secrets import Secret
from testkit.kms import ACCESS_KEY_ID, SECRET_ACCESS_KEY, EmbeddedKms
from testkit.settings import TestkitSettings
from testkit.softhsm import SoftHsm
from testkit.vault.admin import VaultAdmin
from testkit.vault.server import FakeVault

_CALLS: Final = 50
_VERSIONS: Final = (10, 100)
_DATA: Final = b"byok/bench/associated-data"


async def measure_root_keys(room: Room, _suite: Suite) -> list[Row]:
    """Measure every provider."""
    rows: list[Row] = []
    for name, set_up in _PROVIDERS.items():
        async with AsyncExitStack() as stack:
            settings, told = await set_up(room.folder, stack)
            root = await open_root_key(settings, stack, clock=SystemClock())
            rows += await _measured(name, root, told, repetitions=room.pace.repetitions)
    return rows


async def _measured(name: str, root: RootKey, told: str, *, repetitions: int) -> list[Row]:
    key = Secret(os.urandom(32))
    wrapped = await root.wrap(key, _DATA)
    wraps = [await _ms(lambda: root.wrap(key, _DATA), calls=_CALLS) for _ in range(repetitions)]
    unwraps = [await _ms(lambda: root.unwrap(wrapped, _DATA), calls=_CALLS) for _ in range(repetitions)]
    note = f"{told}; {_CALLS} a repetition, one after the other"
    rows = [
        row_of(f"root_key.{name}_wrap_ms", wraps, unit="ms", note=note),
        row_of(f"root_key.{name}_unwrap_ms", unwraps, unit="ms", note=note),
    ]
    longest = await _keyring(root, max(_VERSIONS))
    for versions in _VERSIONS:
        starts = [await _start_ms(root, longest[:versions]) for _ in range(repetitions)]
        note = f"{told}; unwrapping a keyring of {versions} key versions, all asked for at once"
        rows.append(row_of(f"root_key.{name}_start_ms.n{versions}", starts, unit="ms", note=note))
    return rows


async def _keyring(root: RootKey, versions: int) -> list[KeyringRecord]:
    """Return a keyring with as many versions as a long life of rotations leaves behind."""
    ring = await wrap_new_keys("bench", KeyPurpose, root)
    for version in range(2, versions - len(ring) + 2):
        old = replace(draw_key(KeyPurpose.KEK, version=version), state=KeyState.DECRYPT_ONLY)
        ring.append(await wrap_key("bench", old, root))
    return ring


async def _start_ms(root: RootKey, records: list[KeyringRecord]) -> float:
    return await _ms(lambda: unwrap_records("bench", records, [root]), calls=1)


async def _ms(call: Callable[[], Awaitable[object]], *, calls: int) -> float:
    """Return what one call takes, in milliseconds."""
    began = perf_counter()
    for _ in range(calls):
        await call()
    return (perf_counter() - began) / calls * 1e3


async def _file(folder: Path, _stack: AsyncExitStack) -> tuple[RootKeySettings, str]:
    path = _secret_file(folder / "root.key", os.urandom(32).hex())
    return RootKeySettings(file=path), "a file, read once"


async def _pkcs11(folder: Path, _stack: AsyncExitStack) -> tuple[RootKeySettings, str]:
    softhsm = SoftHsm(folder / "softhsm", pin=os.urandom(8).hex())
    softhsm.start()
    label = "bench"
    softhsm.make_token(label)
    softhsm.make_key(label, "root")
    token = Pkcs11Settings(module=softhsm.module, token_label=label, key_label="root", pin_file=softhsm.pin_file)
    return RootKeySettings(provider="pkcs11", pkcs11=token), "SoftHSM2, with a login a batch; no hardware"


async def _aws_kms(folder: Path, stack: AsyncExitStack) -> tuple[RootKeySettings, str]:
    server = EmbeddedKms(folder / "kms.log")
    server.start()
    stack.callback(server.stop)
    os.environ.update({"AWS_ACCESS_KEY_ID": ACCESS_KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY})
    key = AwsKmsSettings(key_arn=server.make_key(), endpoint_url=server.endpoint_url)
    return RootKeySettings(provider="aws_kms", aws_kms=key), "moto's AWS KMS on this machine, a stand-in"


async def _vault_transit(folder: Path, stack: AsyncExitStack) -> tuple[RootKeySettings, str]:
    given = TestkitSettings()
    if given.vault_addr is not None and given.vault_token is not None:
        admin, told = VaultAdmin(given.vault_addr, given.vault_token), "the server in BYOK_TEST_VAULT_ADDR"
    else:
        server = await stack.enter_async_context(FakeVault())
        admin, told = VaultAdmin(server.address, server.token), "testkit's Vault in this process, a stand-in"
    mount = f"bench-{os.urandom(4).hex()}"
    await admin.mount_transit(mount)
    await admin.make_key(mount, "root")
    await admin.set_policy(mount, [f"{mount}/encrypt/root", f"{mount}/decrypt/root"])
    token_file = _secret_file(folder / "vault-token", await admin.make_token(mount))
    vault = VaultTransitSettings(address=admin.address, mount=mount, key="root", token_file=token_file)
    return RootKeySettings(provider="vault_transit", vault_transit=vault), told


def _secret_file(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o400)
    return path


_PROVIDERS: Final[Mapping[str, Callable[[Path, AsyncExitStack], Awaitable[tuple[RootKeySettings, str]]]]] = {
    "file": _file,
    "pkcs11": _pkcs11,
    "aws_kms": _aws_kms,
    "vault_transit": _vault_transit,
}
