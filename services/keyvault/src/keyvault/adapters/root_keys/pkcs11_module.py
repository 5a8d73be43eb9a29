"""PKCS#11 modules of this process, and one session at a time on a token of theirs. Everything here blocks.

A module is initialised once per process and is told of no threads, so one lock per module lets one call in at a time,
whoever makes it; whoever cannot get in within a bound is told so, for the call before may never come back.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pkcs11
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass

from keyvault.domain.envelope import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

IV_BYTES: Final = 12
TAG_BYTES: Final = 16

_AES_BYTES: Final = 32
_PROBE: Final = b"byok/root-key/v1/probe".ljust(KEY_BYTES, b".")
_LOGIN_REFUSED: Final = (
    pkcs11.PinExpired,
    pkcs11.PinIncorrect,
    pkcs11.PinInvalid,
    pkcs11.PinLenRange,
    pkcs11.PinLocked,
    pkcs11.UserPinNotInitialized,
)
# What tokens say of a tag that does not fit; some say only that the call failed, as they do of a broken token.
_DATA_REFUSED: Final = (pkcs11.EncryptedDataInvalid, pkcs11.EncryptedDataLenRange)
_DATA_REFUSED_MAYBE: Final = (pkcs11.DataInvalid, pkcs11.FunctionFailed, pkcs11.GeneralError)


class ModuleMissingError(Exception):
    """The module cannot be loaded."""


class ModuleBusyError(Exception):
    """A call of somebody else has not come back from the module."""


class LoginRefusedError(Exception):
    """The token refuses the PIN."""


class KeyUnfitError(Exception):
    """The key is missing, is there twice, or is not one that a root key may be; the text says which."""


class DataRefusedError(Exception):
    """The token works, and the bytes or the associated data are not what this key encrypted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOptions:
    """Where the key is."""

    module: Path
    token_label: str
    key_label: str
    token_serial: str | None = None
    iv_source: Literal["caller", "token"] = "caller"
    """Who draws the IV. A token that draws its own (in FIPS mode) writes it where it was handed zeros."""


class _Module:
    """A loaded module, and who may call it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.is_stale = False

    @contextlib.contextmanager
    def entered(self, timeout_seconds: float) -> Iterator[None]:
        """Let one call in. Raises ModuleBusyError when the one before does not come out."""
        if not self._lock.acquire(timeout=timeout_seconds):
            raise ModuleBusyError
        try:
            yield
        finally:
            self._lock.release()

    def load(self) -> Any:
        """Return the module. After a failure it is initialised anew: some see a token that came back only then."""
        try:
            loaded = pkcs11.lib(self._path)
        except pkcs11.PKCS11Error as error:
            if type(error) is not pkcs11.PKCS11Error:
                raise
            # The bare class is what the dynamic linker's refusal comes as.
            raise ModuleMissingError from None
        if self.is_stale:
            loaded.reinitialize()
            self.is_stale = False
        return loaded


# The state of a module is the process's own (C_Initialize), so who uses it must be known to the process too.
_MODULES: Final[dict[str, _Module]] = {}
_FINDING: Final = threading.Lock()


def _module(path: Path) -> _Module:
    with _FINDING:
        return _MODULES.setdefault(str(path), _Module(str(path)))


class TokenSession:
    """A session on one token, opened when first used and after every failure."""

    def __init__(self, options: TokenOptions) -> None:
        """Use the key that `options` name."""
        self._options = options
        self._module = _module(options.module)
        self._session: Any = None
        self._key: Any = None

    @contextlib.contextmanager
    def entered(self, timeout_seconds: float) -> Iterator[None]:
        """Let the caller in alone; everything below needs that. A failure closes the session."""
        with self._module.entered(timeout_seconds):
            try:
                yield
            except pkcs11.PKCS11Error:
                self._module.is_stale = True
                self.close()
                raise
            except (KeyUnfitError, LoginRefusedError):
                self.close()
                raise

    def open(self, pin: str) -> None:
        """Log in, and find the key, unless that is done.

        Raises:
            LoginRefusedError, KeyUnfitError, ModuleMissingError: as they say.
            pkcs11.PKCS11Error: the token is away.
        """
        if self._session is not None:
            return
        token = self._find_token()
        try:
            self._session = _log_in(token, user_pin=pin)
        except pkcs11.UserAlreadyLoggedIn:
            # The login is the process's own: whoever else uses this token has made it.
            self._session = _log_in(token)
        except _LOGIN_REFUSED as error:
            raise LoginRefusedError(type(error).__name__) from None
        self._key = self._find_key()

    def close(self) -> None:
        """Log out, and forget the session."""
        session, self._session, self._key = self._session, None, None
        if session is not None:
            with contextlib.suppress(pkcs11.PKCS11Error):
                session.close()

    def encrypt(self, plaintext: bytes, associated_data: bytes) -> bytes:
        """Return IV, ciphertext and tag. Raises KeyUnfitError, pkcs11.PKCS11Error."""
        if self._options.iv_source == "caller":
            iv = os.urandom(IV_BYTES)
            return iv + self._run(self._key.encrypt, plaintext, iv, associated_data)
        # The binding hands the token these very bytes to write into; they are made here, so nobody else holds them.
        iv = ctypes.string_at(bytes(IV_BYTES), IV_BYTES)
        sealed = self._run(self._key.encrypt, plaintext, iv, associated_data)
        if iv == bytes(IV_BYTES):
            # A token that used the zeros would use them again: two keys under one IV undo GCM. Nothing is stored.
            raise KeyUnfitError('it draws no IV of its own; set iv_source to "caller"')
        return iv + sealed

    def decrypt(self, sealed: bytes, associated_data: bytes) -> bytes:
        """Return what `encrypt` was given. Raises DataRefusedError, KeyUnfitError, pkcs11.PKCS11Error."""
        try:
            return self._run(self._key.decrypt, sealed[IV_BYTES:], sealed[:IV_BYTES], associated_data)
        except _DATA_REFUSED:
            raise DataRefusedError from None
        except _DATA_REFUSED_MAYBE:
            probe = self.encrypt(_PROBE, associated_data)
            self._run(self._key.decrypt, probe[IV_BYTES:], probe[:IV_BYTES], associated_data)
            raise DataRefusedError from None

    def _run(self, operation: Any, text: bytes, iv: bytes, associated_data: bytes) -> bytes:
        parameters = GCMParams(nonce=iv, aad=associated_data, tag_bits=8 * TAG_BYTES)
        try:
            return bytes(operation(text, mechanism=Mechanism.AES_GCM, mechanism_param=parameters))
        except pkcs11.MechanismInvalid:
            raise KeyUnfitError("its token does no AES-GCM") from None

    def _find_token(self) -> Any:
        wanted: dict[str, Any] = {"token_label": self._options.token_label}
        if self._options.token_serial is not None:
            wanted["token_serial"] = self._options.token_serial.encode()
        try:
            return self._module.load().get_token(**wanted)
        except pkcs11.MultipleTokensReturned:
            raise KeyUnfitError("several tokens have this label; set token_serial") from None

    def _find_key(self) -> Any:
        try:
            key = self._session.get_key(
                object_class=ObjectClass.SECRET_KEY, key_type=KeyType.AES, label=self._options.key_label
            )
        except pkcs11.NoSuchKey:
            raise KeyUnfitError("the token has no AES key with this label") from None
        except pkcs11.MultipleObjectsReturned:
            raise KeyUnfitError("the token has several AES keys with this label") from None
        if not key[Attribute.SENSITIVE] or key[Attribute.EXTRACTABLE]:
            raise KeyUnfitError("it can be taken out of the token; make one that is sensitive and not extractable")
        if key[Attribute.VALUE_LEN] != _AES_BYTES:
            raise KeyUnfitError("it has not 256 bits")
        if not (key[Attribute.ENCRYPT] and key[Attribute.DECRYPT]):
            raise KeyUnfitError("it may not encrypt and decrypt")
        return key


def _log_in(token: Any, **login: str) -> Any:
    try:
        return token.open(**login)
    except pkcs11.FunctionFailed:
        # A session that can only read is enough, but some modules, AWS CloudHSM's for one, open none.
        return token.open(rw=True, **login)
