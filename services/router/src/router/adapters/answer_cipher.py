"""Encrypts kept answers with AES-256-GCM under a key that only Routers mount.

    version (1 byte, 0x01) | key id (4 bytes) | nonce (12 bytes) | ciphertext and tag

The associated data are the length-prefixed words of version, request id and agent id: an answer opens for the very
request that it was bought for and for no other. The key id is a digest of the key, by which a replaced key is noticed.
"""

import hashlib
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from typing_extensions import override

from router.domain.refusals import AnswerNotKeptError
from router.ports import AnswerSeal

SEALED_BYTES_MAX: Final = 16 * 1024
KEY_BYTES: Final = 32

_VERSION: Final = b"\x01"
_KEY_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = 1 + _KEY_ID_BYTES + _NONCE_BYTES
_TAG_BYTES: Final = 16


class AnswerCipher(AnswerSeal):
    """The seal of kept answers."""

    def __init__(self, key: bytes) -> None:
        """Seal under a key of 32 bytes.

        Raises:
            ValueError: The key has another length.
        """
        if len(key) != KEY_BYTES:
            message = f"the answer key must have {KEY_BYTES} bytes"
            raise ValueError(message)
        self._cipher = AESGCM(key)
        self._prefix = _VERSION + hashlib.sha256(b"byok.answer.v1 key id" + key).digest()[:_KEY_ID_BYTES]

    @override
    def seal(self, answer: bytes, /, *, request_id: str, agent_id: str) -> bytes:
        if _HEAD_BYTES + len(answer) + _TAG_BYTES > SEALED_BYTES_MAX:
            return b""
        nonce = os.urandom(_NONCE_BYTES)
        return self._prefix + nonce + self._cipher.encrypt(nonce, answer, _associated(request_id, agent_id))

    @override
    def open(self, sealed: bytes, /, *, request_id: str, agent_id: str) -> bytes:
        if len(sealed) < _HEAD_BYTES + _TAG_BYTES or not sealed.startswith(self._prefix):
            raise AnswerNotKeptError
        nonce = sealed[len(self._prefix) : _HEAD_BYTES]
        try:
            return self._cipher.decrypt(nonce, sealed[_HEAD_BYTES:], _associated(request_id, agent_id))
        except InvalidTag:
            raise AnswerNotKeptError from None


def _associated(request_id: str, agent_id: str) -> bytes:
    parts = (b"byok.answer.v1", request_id.encode(), agent_id.encode())
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
