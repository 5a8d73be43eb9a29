"""The root key in AWS KMS: a symmetric key that never leaves it.

What is stored is the ciphertext that KMS returns, as it is. The encryption context carries a hash of the associated
data: KMS authenticates it, and writes it into CloudTrail, where the associated data itself has no business.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from typing_extensions import override

from keyvault.adapters.root_keys.attempts import TryAgainError, run_off_loop
from keyvault.domain.envelope import KEY_BYTES
from keyvault.domain.errors import RootKeyUnavailableError, RootKeyUnusableError
from keyvault.ports import RootKey
from servicekit.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from keyvault.adapters.root_keys.attempts import Attempts

_ARN: Final = re.compile(r"(arn:aws[a-z-]*:kms):([a-z0-9-]+):(\d{12}:key/(mrk-)?[A-Za-z0-9-]+)")
_CONTEXT_NAME: Final = "byok:associated-data-sha256"
# KMS makes some 180 bytes of 32; what is far longer was not made by it, and is not sent to it.
_WRAPPED_BYTES_MAX: Final = 1024
# Unwrapping a keyring asks for all its versions at once; more at a time would only be throttled.
_CALLS_AT_ONCE: Final = 8
_PROBE: Final = b"byok/root-key/v1/probe".ljust(KEY_BYTES, b".")
_REFUSED_BYTES: Final = (
    "AWS KMS refuses the wrapped key ({}); it was made by another key, for another deployment, or changed: check both, "
    "and restore if needed"
)

# What the service says of the bytes, of the key, or of the request: asking again gets the same answer.
_UNUSABLE: Final = frozenset(
    {
        "IncorrectKeyException",
        "InvalidCiphertextException",
        "InvalidKeyUsageException",
        "NotFoundException",
        "ValidationException",
    }
)
# What somebody has to mend outside, at the key's policy or state, or at this machine's identity or clock.
_REFUSED: Final = {
    "DisabledException": "the key is disabled; enable it",
    "KMSInvalidStateException": "the key is pending deletion or import; cancel that",
    "ExpiredTokenException": "the credentials have expired; renew them",
    "IncompleteSignature": "the credentials are malformed; check them",
    "InvalidClientTokenId": "the credentials are unknown; check them",
    "InvalidSignatureException": "the signature is refused; check the secret access key and this machine's clock",
    "MissingAuthenticationToken": "the credentials are missing; check them",
    "SignatureDoesNotMatch": "the signature is refused; check the secret access key and this machine's clock",
    "UnrecognizedClientException": "the credentials are unknown; check them",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsKmsOptions:
    """Which key, and where."""

    key_arn: str
    endpoint_url: str | None = None


class _DeniedError(Exception):
    """Access is denied: to the key, or to what a changed ciphertext names."""


class _Kms(Protocol):
    def close(self) -> None: ...

    def encrypt(self, **arguments: Any) -> dict[str, Any]: ...

    def decrypt(self, **arguments: Any) -> dict[str, Any]: ...


class AwsKmsRootKey(RootKey):
    """A root key in AWS KMS."""

    def __init__(self, options: AwsKmsOptions, *, attempts: Attempts) -> None:
        """Use the key that `options` name, with the credentials that the machine has; see `open_aws_kms`.

        Raises:
            RootKeyUnusableError: the ARN is not one of a KMS key.
        """
        matched = _ARN.fullmatch(options.key_arn)
        if matched is None:
            message = "root_key.aws_kms.key_arn must be the ARN of a key; an alias could point to another one tomorrow"
            raise RootKeyUnusableError(message)
        self._options = options
        self._region = matched[2]
        # The replicas of a multi-Region key are one key: a keyring that was wrapped in one Region starts in another.
        self._arn = f"{matched[1]}:*:{matched[3]}" if matched[4] else options.key_arn
        self._attempts = attempts
        self._places = asyncio.Semaphore(_CALLS_AT_ONCE)
        self._opening = threading.Lock()
        self._client: _Kms | None = None

    @property
    @override
    def root_key_id(self) -> str:
        return f"aws-kms:{self._arn}"

    @override
    async def wrap(self, key: Secret, associated_data: bytes) -> bytes:
        try:
            return await self._encrypt(key.reveal(), associated_data)
        except _DeniedError:
            raise self._not_allowed() from None

    @override
    async def unwrap(self, wrapped: bytes, associated_data: bytes) -> Secret:
        if not 0 < len(wrapped) <= _WRAPPED_BYTES_MAX:
            raise self._unusable("the wrapped key is no ciphertext of KMS; restore the keyring")
        try:
            key = await self._decrypt(wrapped, associated_data)
        except _DeniedError:
            await self._ensure_is_allowed()
            # KMS denies what it will not tell about: a ciphertext that names a key it does not have, for one.
            raise self._unusable(_REFUSED_BYTES.format("AccessDeniedException")) from None
        if len(key) != KEY_BYTES:
            raise self._unusable("what KMS unwrapped is no key; restore the keyring")
        return Secret(key)

    def close(self) -> None:
        """Close what connections are open; a later call opens new ones."""
        with self._opening:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    async def _ensure_is_allowed(self) -> None:
        try:
            await self._decrypt(await self._encrypt(_PROBE, _PROBE), _PROBE)
        except _DeniedError:
            raise self._not_allowed() from None

    async def _encrypt(self, plaintext: bytes, associated_data: bytes) -> bytes:
        context = _context(associated_data)
        answer = await self._ask(
            lambda kms: kms.encrypt(KeyId=self._options.key_arn, Plaintext=plaintext, EncryptionContext=context)
        )
        return bytes(answer["CiphertextBlob"])

    async def _decrypt(self, wrapped: bytes, associated_data: bytes) -> bytes:
        context = _context(associated_data)
        answer = await self._ask(
            lambda kms: kms.decrypt(KeyId=self._options.key_arn, CiphertextBlob=wrapped, EncryptionContext=context)
        )
        return bytes(answer["Plaintext"])

    async def _ask(self, call: Callable[[_Kms], dict[str, Any]]) -> dict[str, Any]:
        async def attempt() -> dict[str, Any]:
            async with self._places:
                return await run_off_loop(lambda: self._call(call))

        answer = await self._attempts.run(attempt, root_key_id=self.root_key_id)
        if self._named(str(answer.get("KeyId"))) != self._arn:
            raise self._unusable("KMS answered with another key; check root_key.aws_kms.endpoint_url")
        return answer

    def _call(self, call: Callable[[_Kms], dict[str, Any]]) -> dict[str, Any]:
        try:
            return call(self._open())
        except ClientError as error:
            raise self._translated(error) from None
        except (NoCredentialsError, PartialCredentialsError):
            message = "no AWS credentials were found; give this service a role (IRSA, EKS Pod Identity, instance role)"
            raise RootKeyUnavailableError(message, root_key_id=self.root_key_id) from None
        except HTTPClientError as error:
            message = f"AWS KMS cannot be reached ({type(error).__name__}); check the network and the endpoint"
            raise TryAgainError(message) from None
        except BotoCoreError as error:
            raise TryAgainError(f"AWS KMS cannot be asked ({type(error).__name__})") from None

    def _open(self) -> _Kms:
        with self._opening:
            if self._client is None:
                # Its debug lines show requests, and so the keys in them.
                logging.getLogger("botocore").setLevel(logging.INFO)
                seconds = self._attempts.timeout.total_seconds()
                client: Any = botocore.session.Session().create_client(
                    "kms",
                    region_name=self._region,
                    endpoint_url=self._options.endpoint_url,
                    config=Config(
                        connect_timeout=seconds,
                        read_timeout=seconds,
                        # One attempt: how often, and with what pauses, is told by our own settings alone.
                        retries={"mode": "standard", "total_max_attempts": 1},
                        max_pool_connections=_CALLS_AT_ONCE,
                    ),
                )
                self._client = client
            kms: _Kms = self._client
            return kms

    def _translated(self, error: ClientError) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", "none"))
        if code in _UNUSABLE:
            if code == "NotFoundException":
                return self._unusable("AWS KMS has no such key in this account and Region; check root_key.aws_kms")
            return self._unusable(_REFUSED_BYTES.format(code))
        if code == "AccessDeniedException":
            return _DeniedError()
        remedy = _REFUSED.get(code)
        if remedy is not None:
            return RootKeyUnavailableError(f"AWS KMS: {remedy}", root_key_id=self.root_key_id)
        return TryAgainError(f"AWS KMS answered {code if code.isalnum() else 'an unknown error'}")

    def _not_allowed(self) -> RootKeyUnavailableError:
        message = "AWS KMS: this identity may not use the key; allow it kms:Encrypt and kms:Decrypt"
        return RootKeyUnavailableError(message, root_key_id=self.root_key_id)

    def _named(self, arn: str) -> str:
        matched = _ARN.fullmatch(arn)
        return f"{matched[1]}:*:{matched[3]}" if matched is not None and matched[4] else arn

    def _unusable(self, message: str) -> RootKeyUnusableError:
        return RootKeyUnusableError(message, root_key_id=self.root_key_id)


@asynccontextmanager
async def open_aws_kms(options: AwsKmsOptions, *, attempts: Attempts) -> AsyncIterator[AwsKmsRootKey]:
    """Give the root key that `options` name; nothing is asked yet. Raises RootKeyUnusableError: the ARN is none."""
    root = AwsKmsRootKey(options, attempts=attempts)
    try:
        yield root
    finally:
        root.close()


def _context(associated_data: bytes) -> dict[str, str]:
    return {_CONTEXT_NAME: hashlib.sha256(associated_data).hexdigest()}
