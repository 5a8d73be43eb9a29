"""The identity of a mutation: which request id, of whom, with which body."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain.canonical import Field, encode_fields
from keyvault.domain.errors import RequestIdReusedError
from keyvault.domain.keyring import KeyPurpose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyvault.domain.keyring import Keyring

_BODY_LABEL: Final = "byok/keyvault/v1/request-body"


@dataclass(frozen=True, slots=True)
class RequestIdentity:
    """A request id within its scope, with the keyed HMAC of what was asked.

    The HMAC is keyed because the body holds the secret: a plain hash of it would let whoever reads the table test
    guesses.
    """

    scope: str
    request_id: str
    mac_key_version: int
    body_mac: bytes


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """What a request id was used for."""

    identity: RequestIdentity
    resource_id: str
    audit_index: int


@dataclass(frozen=True, slots=True)
class RequestBody:
    """What was asked, in canonical bytes, before it is known under which key version it was recorded."""

    scope: str
    request_id: str
    canonical: bytes

    def identity(self, keyring: Keyring) -> RequestIdentity:
        """Return the identity to record, under the primary HMAC key."""
        version = keyring.primary(KeyPurpose.EQUALITY_MAC).version
        return RequestIdentity(self.scope, self.request_id, version, self._mac(keyring, version))

    def ensure_same(self, keyring: Keyring, recorded: RecordedRequest) -> None:
        """Raise RequestIdReusedError unless `recorded` was made by this very body."""
        version = recorded.identity.mac_key_version
        if not hmac.compare_digest(self._mac(keyring, version), recorded.identity.body_mac):
            message = "the request id was used before with another body; mint a new one"
            raise RequestIdReusedError(message, request_id=self.request_id)

    def _mac(self, keyring: Keyring, version: int) -> bytes:
        context = keyring.mac(KeyPurpose.EQUALITY_MAC, version)
        context.update(self.canonical)
        return context.digest()


def request_body(rpc: str, principal: str, request_id: str, fields: Sequence[Field]) -> RequestBody:
    """Return the body of one call of `rpc` by `principal`."""
    return RequestBody(f"{rpc}/{principal}", request_id, encode_fields(_BODY_LABEL, (rpc, *fields)))
