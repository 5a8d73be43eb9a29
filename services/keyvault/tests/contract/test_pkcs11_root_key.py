"""What the root key on a token promises beyond the contract."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyvault.adapters.root_keys.pkcs11 import Pkcs11RootKey
from keyvault.adapters.root_keys.pkcs11_module import TokenOptions
from keyvault.domain.errors import RootKeyUnavailableError, RootKeyUnusableError
from services.keyvault.tests.contract.root_key_contract import DATA, LIMITS, attempts, secret

if TYPE_CHECKING:
    from pathlib import Path

    from services.keyvault.tests.contract.root_key_kits import Pkcs11Kit
    from testkit.softhsm import SoftHsm


async def test_a_token_that_comes_back_is_used_again(pkcs11_kit: Pkcs11Kit, tokens: SoftHsm) -> None:
    """While it is away that is said; once it is back, the same root key opens what it wrapped before."""
    root = pkcs11_kit.root(asked=attempts(LIMITS))
    wrapped = await root.wrap(secret(), DATA)
    away = tokens.tokens_dir.rename(tokens.tokens_dir.with_name("away"))
    tokens.tokens_dir.mkdir()
    try:
        with pytest.raises(RootKeyUnavailableError):
            await root.unwrap(wrapped, DATA)
    finally:
        tokens.tokens_dir.rmdir()
        away.rename(tokens.tokens_dir)
    assert await root.unwrap(wrapped, DATA) == secret()


async def test_a_refused_pin_is_not_tried_again(tokens: SoftHsm, tmp_path: Path) -> None:
    """A token locks itself after a few wrong PINs; a keyring of many versions must not do that to it."""
    pin_file = tmp_path / "pin"
    pin_file.write_text("wrong")
    pin_file.chmod(0o400)
    options = TokenOptions(module=tokens.module, token_label="main", key_label="first")
    root = Pkcs11RootKey(options, pin_file=pin_file, attempts=attempts())
    refused = await asyncio.gather(*(root.wrap(secret(), DATA) for _ in range(6)), return_exceptions=True)
    said = [str(each) for each in refused]
    assert sum("PinIncorrect" in each for each in said) == 1
    assert sum("refused before" in each for each in said) == 5
    pin_file.chmod(0o600)
    pin_file.write_text(tokens.pin_file.read_text())
    assert await root.unwrap(await root.wrap(secret(), DATA), DATA) == secret()


@pytest.mark.parametrize(
    ("key", "why"), [("extractable", "taken out"), ("short", "256 bits"), ("missing", "no AES key")]
)
async def test_a_key_that_is_no_root_key_is_refused(pkcs11_kit: Pkcs11Kit, unfit: None, key: str, why: str) -> None:
    """A key that can be taken out of the token, is too short or is not there, is refused before it is used."""
    with pytest.raises(RootKeyUnusableError, match=why):
        await pkcs11_kit.root("unfit", key).wrap(secret(), DATA)


async def test_a_module_that_is_not_there_is_told(tokens: SoftHsm, tmp_path: Path) -> None:
    """A misspelt path of the module is no reason to try again."""
    options = TokenOptions(module=tmp_path / "missing.so", token_label="main", key_label="first")
    with pytest.raises(RootKeyUnusableError, match="module"):
        await Pkcs11RootKey(options, pin_file=tokens.pin_file, attempts=attempts()).wrap(secret(), DATA)


@pytest.fixture(scope="module")
def unfit(tokens: SoftHsm) -> None:
    """Make keys that no root key may be."""
    tokens.make_token("unfit")
    tokens.make_key("unfit", "extractable", is_extractable=True)
    tokens.make_key("unfit", "short", bits=128)
