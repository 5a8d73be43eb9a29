"""What the root key on a token promises beyond the contract."""

from __future__ import annotations

import asyncio
import ctypes
import os
from typing import TYPE_CHECKING, Any

import pkcs11
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pkcs11 import GCMParams, Mechanism

from keyvault.adapters.root_keys.pkcs11 import Pkcs11RootKey
from keyvault.adapters.root_keys.pkcs11_module import KeyUnfitError, TokenOptions, TokenSession
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


async def test_a_call_that_hung_is_over_when_the_token_answers(pkcs11_kit: Pkcs11Kit, tokens: SoftHsm) -> None:
    """What held a call up holds up nothing after it, once the token answers again."""
    root = pkcs11_kit.root(asked=attempts(LIMITS))
    wrapped = await root.wrap(secret(), DATA)
    holder = tokens.hold()
    with pytest.raises(RootKeyUnavailableError, match="in time"):
        await root.unwrap(wrapped, DATA)
    holder.kill9()
    assert await pkcs11_kit.root().unwrap(wrapped, DATA) == secret()


async def test_nobody_is_logged_in_while_there_is_nothing_to_do(pkcs11_kit: Pkcs11Kit, tokens: SoftHsm) -> None:
    """After a batch the session is closed: another login in this process is not told that somebody is in already."""
    root = pkcs11_kit.root()
    await asyncio.gather(*(root.wrap(secret(), DATA) for _ in range(8)))
    token = pkcs11.lib(str(tokens.module)).get_token(token_label="main")
    with token.open(user_pin=tokens.pin_file.read_text().strip()) as session, pytest.raises(pkcs11.UserAlreadyLoggedIn):
        token.open(user_pin=tokens.pin_file.read_text().strip())
    assert session is not None


async def test_two_root_keys_share_a_module(pkcs11_kit: Pkcs11Kit) -> None:
    """A rotation from one key on a token to another uses both at once."""
    first, second = pkcs11_kit.root(key="first"), pkcs11_kit.root(key="second")
    wrapped = await asyncio.gather(*(root.wrap(secret(), DATA) for root in (first, second) for _ in range(8)))
    roots = [first] * 8 + [second] * 8
    assert all(
        each == secret()
        for each in await asyncio.gather(*(root.unwrap(each, DATA) for root, each in zip(roots, wrapped, strict=True)))
    )


class FipsKey:
    """A key on a token in FIPS mode, which draws IVs itself and writes them where it was handed zeros."""

    def __init__(self, *, draws: bool) -> None:
        self._aead = AESGCM(bytes(32))
        self._draws = draws
        self.handed: list[bytes] = []

    def encrypt(self, text: bytes, *, mechanism: Mechanism, mechanism_param: GCMParams) -> bytes:
        assert mechanism is Mechanism.AES_GCM
        self.handed.append(bytes(bytearray(mechanism_param.nonce)))
        if self._draws:
            ctypes.memmove(ctypes.c_char_p(mechanism_param.nonce), os.urandom(12), 12)
        return self._aead.encrypt(bytes(bytearray(mechanism_param.nonce)), text, mechanism_param.aad)

    def decrypt(self, text: bytes, *, mechanism: Mechanism, mechanism_param: GCMParams) -> bytes:
        return self._aead.decrypt(mechanism_param.nonce, text, mechanism_param.aad)


def fips_session(tokens: SoftHsm, key: FipsKey) -> TokenSession:
    """Return a session on a token that insists on drawing IVs."""
    options = TokenOptions(module=tokens.module, token_label="fips", key_label="root", iv_source="token")
    session = TokenSession(options)
    session._key = key
    return session


def test_an_iv_that_the_token_draws_is_kept(tokens: SoftHsm) -> None:
    """The token is handed zeros, and what it wrote there is stored and used to open."""
    key = FipsKey(draws=True)
    session = fips_session(tokens, key)
    sealed = [session.encrypt(secret().reveal(), DATA) for _ in range(3)]
    assert key.handed == [bytes(12)] * 3
    assert len({each[:12] for each in sealed} | {bytes(12)}) == 4
    assert all(session.decrypt(each, DATA) == secret().reveal() for each in sealed)


def test_a_token_that_draws_no_iv_is_refused(tokens: SoftHsm) -> None:
    """Zeros that were used as they were handed over would be used again: nothing sealed under them is kept."""
    with pytest.raises(KeyUnfitError, match="IV"):
        fips_session(tokens, FipsKey(draws=False)).encrypt(secret().reveal(), DATA)


class NoReadOnlySessions:
    """A token of a module that opens no session that can only read."""

    def __init__(self, token: Any) -> None:
        self._token = token

    def open(self, *, rw: bool = False, **login: str) -> Any:
        if not rw:
            raise pkcs11.FunctionFailed
        return self._token.open(rw=True, **login)


def test_a_module_that_only_opens_sessions_that_write_is_used(tokens: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    """What AWS CloudHSM lacks is no reason not to start."""
    session = TokenSession(TokenOptions(module=tokens.module, token_label="main", key_label="first"))
    token = NoReadOnlySessions(session._find_token())
    monkeypatch.setattr(session, "_find_token", lambda: token)
    with session.entered(10):
        session.open(tokens.pin_file.read_text().strip())
        assert session.decrypt(session.encrypt(b"x" * 32, DATA), DATA) == b"x" * 32
        session.close()
