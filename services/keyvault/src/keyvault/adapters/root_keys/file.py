"""The root key in a file: for the demo, and for secrets that an orchestrator mounts.

The file holds 32 bytes as 64 hex digits, and may be read by nobody but its owner and group.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from keyvault.adapters.root_keys.secret_files import read_secret_file
from keyvault.domain.envelope import Kek, unwrap_dek, wrap_dek
from keyvault.domain.errors import EnvelopeCorruptError, RootKeyUnusableError
from keyvault.ports import RootKey
from servicekit.secrets import Secret

if TYPE_CHECKING:
    from pathlib import Path

_HEX: Final = re.compile(rb"\s*([0-9a-fA-F]{64})\s*")
_ID_PREFIX: Final = b"byok/root-key/v1/id"
_WRAP_VERSION: Final = 1


class FileRootKey(RootKey):
    """A root key that was read from a file."""

    def __init__(self, key: Secret) -> None:
        """Hold the 32 bytes of the root key; use `read_root_key`."""
        self._kek = Kek(version=_WRAP_VERSION, key=key)
        # One-way, so that a keyring can say which root key it needs without saying anything of it.
        self._root_key_id = "file:" + hashlib.sha256(_ID_PREFIX + key.reveal()).hexdigest()[:16]

    @property
    @override
    def root_key_id(self) -> str:
        return self._root_key_id

    @override
    async def wrap(self, key: Secret, associated_data: bytes) -> bytes:
        return wrap_dek(key, associated_data=associated_data, kek=self._kek)

    @override
    async def unwrap(self, wrapped: bytes, associated_data: bytes) -> Secret:
        try:
            return unwrap_dek(wrapped, associated_data=associated_data, kek=self._kek)
        except EnvelopeCorruptError:
            message = (
                "the keyring was not wrapped by this root key for this deployment; check both, and restore if needed"
            )
            raise RootKeyUnusableError(message, root_key_id=self._root_key_id) from None


def read_root_key(path: Path) -> FileRootKey:
    """Return the root key in the file at `path`.

    Raises:
        RootKeyUnusableError: the file is missing, readable by everybody, or not 64 hex digits.
    """
    matched = _HEX.fullmatch(read_secret_file(path, setting="root_key.file"))
    if matched is None:
        message = "the root key file must hold 64 hex digits and nothing else; make one with: openssl rand -hex 32"
        raise RootKeyUnusableError(message)
    return FileRootKey(Secret(bytes.fromhex(matched[1].decode())))
