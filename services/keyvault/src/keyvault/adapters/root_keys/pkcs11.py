"""The root key on a PKCS#11 token: an AES-256 key that cannot be taken out, used with AES-GCM.

What is stored::

    0x01 | IV (12) | ciphertext (32) | tag (16)

The session lasts while there is something to do, so nobody is logged in at the token while the service serves.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Final, TypeVar

from pkcs11 import PKCS11Error
from typing_extensions import override

from keyvault.adapters.root_keys.attempts import TryAgainError, run_off_loop
from keyvault.adapters.root_keys.pkcs11_module import (
    IV_BYTES,
    TAG_BYTES,
    DataRefusedError,
    KeyUnfitError,
    LoginRefusedError,
    ModuleBusyError,
    ModuleMissingError,
    TokenSession,
)
from keyvault.adapters.root_keys.secret_files import read_secret_line
from keyvault.domain.envelope import KEY_BYTES
from keyvault.domain.errors import RootKeyUnavailableError, RootKeyUnusableError
from keyvault.ports import RootKey
from servicekit.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyvault.adapters.root_keys.attempts import Attempts
    from keyvault.adapters.root_keys.pkcs11_module import TokenOptions

_T = TypeVar("_T")

_FORMAT: Final = b"\x01"
_WRAPPED_BYTES: Final = len(_FORMAT) + IV_BYTES + KEY_BYTES + TAG_BYTES


class Pkcs11RootKey(RootKey):
    """A root key on a token."""

    def __init__(self, options: TokenOptions, *, pin_file: Path, attempts: Attempts) -> None:
        """Use the key that `options` name, with the PIN in `pin_file`."""
        self._options = options
        self._pin_file = pin_file
        self._attempts = attempts
        self._session = TokenSession(options)
        self._turn = asyncio.Lock()
        self._waiting = 0
        # Tokens lock themselves after a few wrong PINs, and a keyring has more versions than that.
        self._refused_pin: bytes | None = None

    @property
    @override
    def root_key_id(self) -> str:
        return f"pkcs11:{self._options.token_label}/{self._options.key_label}"

    @override
    async def wrap(self, key: Secret, associated_data: bytes) -> bytes:
        return _FORMAT + await self._use(lambda: self._session.encrypt(key.reveal(), associated_data))

    @override
    async def unwrap(self, wrapped: bytes, associated_data: bytes) -> Secret:
        if len(wrapped) != _WRAPPED_BYTES or not wrapped.startswith(_FORMAT):
            raise self._unusable("the wrapped key is no ciphertext of a token; restore the keyring")
        sealed = wrapped[len(_FORMAT) :]
        return await self._use(lambda: Secret(self._session.decrypt(sealed, associated_data)))

    async def _use(self, work: Callable[[], _T]) -> _T:
        async def attempt() -> _T:
            async with self._turn:
                return await run_off_loop(lambda: self._work(work))

        self._waiting += 1
        try:
            return await self._attempts.run(attempt, root_key_id=self.root_key_id)
        finally:
            self._waiting -= 1

    def _work(self, work: Callable[[], _T]) -> _T:
        try:
            with self._session.entered(self._attempts.timeout.total_seconds()):
                self._session.open(self._read_pin())
                try:
                    return work()
                finally:
                    if self._waiting <= 1:
                        self._session.close()
        except DataRefusedError:
            message = (
                "the token refuses the wrapped key; it was made by another key, for another deployment, or changed: "
                "check both, and restore if needed"
            )
            raise self._unusable(message) from None
        except KeyUnfitError as error:
            raise self._unusable(f"the key on the token cannot be the root key: {error}") from None
        except ModuleMissingError:
            raise self._unusable("the PKCS#11 module cannot be loaded; check root_key.pkcs11.module") from None
        except LoginRefusedError as error:
            self._refused_pin = _digest(self._read_pin(is_checked=False))
            raise self._login_refused(str(error)) from None
        except ModuleBusyError:
            raise TryAgainError("the PKCS#11 module is busy with a call that does not return") from None
        except PKCS11Error as error:
            message = f"the token cannot be used ({type(error).__name__}); check that it is there and initialised"
            raise TryAgainError(message) from None

    def _read_pin(self, *, is_checked: bool = True) -> str:
        pin = read_secret_line(self._pin_file, setting="root_key.pkcs11.pin_file")
        if is_checked and self._refused_pin == _digest(pin):
            raise self._login_refused("refused before")
        return pin

    def _login_refused(self, why: str) -> RootKeyUnavailableError:
        message = (
            f"the token refuses the PIN ({why}); it is not tried again until its file changes, so that the token does "
            "not lock itself: check root_key.pkcs11.pin_file"
        )
        return RootKeyUnavailableError(message, root_key_id=self.root_key_id)

    def _unusable(self, message: str) -> RootKeyUnusableError:
        return RootKeyUnusableError(message, root_key_id=self.root_key_id)


def _digest(pin: str) -> bytes:
    return hashlib.sha256(pin.encode()).digest()
