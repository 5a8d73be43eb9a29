"""The root key in the transit engine of HashiCorp Vault (1.13 or later) or OpenBao: an AEAD key that never leaves it.

What is stored is the ciphertext that transit returns, as it is: `vault:v<version>:<base64>`. Versions are transit's own
business: `rotate` there changes nothing here, and what an older version wrapped opens as long as
`min_decryption_version` lets it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import orjson
from typing_extensions import override

from keyvault.adapters.root_keys.attempts import TryAgainError
from keyvault.adapters.root_keys.vault_login import RoleLogin, TokenFileLogin
from keyvault.domain.envelope import KEY_BYTES
from keyvault.domain.errors import RootKeyUnavailableError, RootKeyUnusableError
from keyvault.ports import RootKey
from servicekit.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyvault.adapters.root_keys.attempts import Attempts

# Exactly what transit writes. It reads more than that (version 0 for 1, line ends within base64), and what differs in a
# byte must not open.
_WRAPPED: Final = re.compile(rb"vault:v[1-9][0-9]{0,8}:([A-Za-z0-9+/]+={0,2})")
_WRAPPED_BYTES_MAX: Final = 1024
_ANSWER_BYTES_MAX: Final = 64 * 1024
_CALLS_AT_ONCE: Final = 8
_IDLE: Final = timedelta(seconds=15)
_PROBE: Final = bytes(KEY_BYTES)
# Statuses that may be others in a moment: no leader, an index that is behind, a quota, sealed, something between.
_PASSING: Final = frozenset({HTTPStatus.PRECONDITION_FAILED, HTTPStatus.TOO_MANY_REQUESTS})


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultTransitOptions:
    """Which key, where, and who asks."""

    address: str
    key: str
    login: TokenFileLogin | RoleLogin
    mount: str = "transit"
    namespace: str | None = None
    ca_file: Path | None = None


class _RefusedError(Exception):
    """An answer that says no; its body is nobody's business."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class VaultTransitRootKey(RootKey):
    """A root key in a transit engine."""

    def __init__(self, options: VaultTransitOptions, *, session: aiohttp.ClientSession, attempts: Attempts) -> None:
        """Use the key that `options` name over `session`; see `open_vault_transit`."""
        self._options = options
        self._session = session
        self._attempts = attempts
        self._places = asyncio.Semaphore(_CALLS_AT_ONCE)
        self._logging_in = asyncio.Lock()
        self._token: Secret | None = None
        self._binds = False

    @property
    @override
    def root_key_id(self) -> str:
        options = self._options
        namespace = f"{options.namespace.strip('/')}/" if options.namespace else ""
        return f"vault-transit:{namespace}{options.mount}/{options.key}"

    @override
    async def wrap(self, key: Secret, associated_data: bytes) -> bytes:
        if not self._binds:
            await self._ensure_associated_data_binds()
        return await self._encrypt(key.reveal(), associated_data)

    @override
    async def unwrap(self, wrapped: bytes, associated_data: bytes) -> Secret:
        matched = _WRAPPED.fullmatch(wrapped) if len(wrapped) <= _WRAPPED_BYTES_MAX else None
        if matched is None or _base64(_decoded(matched[1])) != matched[1].decode():
            raise self._unusable("the wrapped key is no ciphertext of a transit engine; restore the keyring")
        return await self._decrypt(wrapped.decode(), associated_data)

    async def _ensure_associated_data_binds(self) -> None:
        # Vault before 1.13 takes the field and ignores it: keys of the ring could then change places.
        probe = await self._encrypt(_PROBE, b"one")
        try:
            await self._decrypt(probe.decode(), b"another")
        except RootKeyUnusableError:
            self._binds = True
            return
        raise self._unusable("this server ignores associated_data; use Vault 1.13 or later, or OpenBao")

    async def _encrypt(self, plaintext: bytes, associated_data: bytes) -> bytes:
        answer = await self._ask("encrypt", plaintext=_base64(plaintext), associated_data=_base64(associated_data))
        wrapped = str(answer.get("ciphertext")).encode()
        if _WRAPPED.fullmatch(wrapped) is None:
            raise self._unusable("the answer of the transit engine is no ciphertext; check root_key.vault_transit")
        return wrapped

    async def _decrypt(self, ciphertext: str, associated_data: bytes) -> Secret:
        answer = await self._ask("decrypt", ciphertext=ciphertext, associated_data=_base64(associated_data))
        key = _decoded(str(answer.get("plaintext")).encode())
        if len(key) != KEY_BYTES:
            raise self._unusable("what the transit engine unwrapped is no key; restore the keyring")
        return Secret(key)

    async def _ask(self, verb: str, **fields: str) -> dict[str, Any]:
        path = f"{self._options.mount}/{verb}/{self._options.key}"

        async def attempt() -> dict[str, Any]:
            async with self._places:
                try:
                    return await self._ask_with_token(path, fields)
                except _RefusedError as error:
                    raise self._refused(error.status) from None

        return await self._attempts.run(attempt, root_key_id=self.root_key_id)

    async def _ask_with_token(self, path: str, fields: dict[str, str]) -> dict[str, Any]:
        token, is_fresh = await self._get_token()
        try:
            answer = await self._post(path, fields, token=token)
        except _RefusedError as error:
            if error.status != HTTPStatus.FORBIDDEN or is_fresh:
                raise
            # The token has run out, or was revoked.
            await self._forget_token(token)
            token, _ = await self._get_token()
            answer = await self._post(path, fields, token=token)
        data = answer.get("data")
        return data if isinstance(data, dict) else {}

    async def _get_token(self) -> tuple[Secret, bool]:
        """Return a token, and whether it was made just now."""
        login = self._options.login
        if isinstance(login, TokenFileLogin):
            return Secret(login.read()), True
        async with self._logging_in:
            if self._token is not None:
                return self._token, False
            try:
                answer = await self._post(login.path, login.body(), token=None)
            except _RefusedError as error:
                if error.status in {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
                    raise self._unavailable(
                        f"the login by {login.method} is refused ({error.status}); check the role, its secret and "
                        "the mount of the auth method"
                    ) from None
                raise
            auth = answer.get("auth")
            token = auth.get("client_token") if isinstance(auth, dict) else None
            if not isinstance(token, str) or not token:
                raise self._unavailable("the answer to the login has no token; check the auth method")
            self._token = Secret(token)
            return self._token, True

    async def _forget_token(self, token: Secret) -> None:
        async with self._logging_in:
            if self._token is not None and self._token == token:
                self._token = None

    async def _post(self, path: str, body: dict[str, Any], *, token: Secret | None) -> dict[str, Any]:
        headers = {"X-Vault-Request": "true", "Content-Type": "application/json"}
        if token is not None:
            headers["X-Vault-Token"] = token.reveal().decode()
        if self._options.namespace:
            headers["X-Vault-Namespace"] = self._options.namespace
        url = f"{self._options.address.rstrip('/')}/v1/{path}"
        try:
            # A redirect would take token and key elsewhere.
            async with self._session.post(
                url, data=orjson.dumps(body), headers=headers, allow_redirects=False
            ) as response:
                if response.status != HTTPStatus.OK:
                    raise _RefusedError(response.status)
                content = await response.content.read(_ANSWER_BYTES_MAX)
        except aiohttp.ClientSSLError:
            message = "the server's certificate is not accepted; check root_key.vault_transit.address and ca_file"
            raise self._unavailable(message) from None
        except (aiohttp.ClientError, OSError) as error:
            message = f"the server cannot be reached ({type(error).__name__}); check root_key.vault_transit.address"
            raise TryAgainError(message) from None
        try:
            answer = orjson.loads(content)
        except orjson.JSONDecodeError:
            raise TryAgainError("the server's answer is no JSON; is something between?") from None
        return answer if isinstance(answer, dict) else {}

    def _refused(self, status: int) -> Exception:
        if status == HTTPStatus.BAD_REQUEST:
            return self._unusable(
                "the transit engine refuses the key or the ciphertext; it was made by another key, for another "
                "deployment, is older than min_decryption_version, or was changed: check these, and restore if needed"
            )
        if status == HTTPStatus.NOT_FOUND:
            return self._unusable("there is no transit engine at this mount and namespace; check both")
        if status == HTTPStatus.FORBIDDEN:
            return self._unavailable(
                "permission is denied; the token must be valid, and its policy allow `update` on encrypt/ and decrypt/ "
                "of this key"
            )
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            return self._unavailable(f"the server redirects ({status}); set address to one that answers itself")
        if status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            sealed = "; is it sealed?" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
            return TryAgainError(f"the server answered {status}{sealed}")
        return self._unavailable(f"the server answered {status}; check root_key.vault_transit.address")

    def _unavailable(self, message: str) -> RootKeyUnavailableError:
        return RootKeyUnavailableError(f"Vault: {message}", root_key_id=self.root_key_id)

    def _unusable(self, message: str) -> RootKeyUnusableError:
        return RootKeyUnusableError(f"Vault: {message}", root_key_id=self.root_key_id)


@asynccontextmanager
async def open_vault_transit(options: VaultTransitOptions, *, attempts: Attempts) -> AsyncIterator[VaultTransitRootKey]:
    """Give the root key that `options` name; nothing is asked yet.

    Raises:
        RootKeyUnusableError: the file of the authority's certificates cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
    except OSError as error:
        message = "Vault: the certificates in root_key.vault_transit.ca_file cannot be read"
        raise RootKeyUnusableError(message, errno=error.errno or 0) from None
    connector = aiohttp.TCPConnector(ssl=context, limit=_CALLS_AT_ONCE, keepalive_timeout=_IDLE.total_seconds())
    timeout = aiohttp.ClientTimeout(total=attempts.timeout.total_seconds())
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield VaultTransitRootKey(options, session=session, attempts=attempts)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""
