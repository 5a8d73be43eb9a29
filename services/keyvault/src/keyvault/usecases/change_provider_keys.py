"""What all mutations of provider keys share: replay by request id, ownership, sealing, and the audit entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.envelope import seal
from keyvault.domain.errors import KekNotPrimaryError, ProviderKeyNotFoundError, StaleAuthorityError
from keyvault.domain.keyring import KeyPurpose
from keyvault.domain.ownership import Principal
from keyvault.domain.provider_keys import ProviderKey, StoredKey
from keyvault.domain.submitted_secrets import equality_mac
from keyvault.ports import KeyringSource, ProviderKeyStore, PutResult, SealedVersion

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from keyvault.domain.requests import RequestBody, RequestIdentity
    from keyvault.usecases.verify_rows import VerifyRows
    from keyvault.usecases.write_authority import WriteKey
    from servicekit.secrets import Secret

ATTEMPTS_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: the caller's identity by its certificate, the person or service that it names, and on whose behalf."""

    caller: str
    actor: str
    acting_for: Principal


class ProviderKeys:
    """Reads and writes verified provider keys for the use cases that change them."""

    def __init__(self, keys: ProviderKeyStore, *, keyring: KeyringSource, verify: VerifyRows, write: WriteKey) -> None:
        """Work on `keys`."""
        self._keys = keys
        self._keyring = keyring
        self._verify = verify
        self.write = write

    async def owned(self, provider_key_id: str, principal: Principal) -> StoredKey:
        """Return the present state of a key of this principal.

        Raises:
            ProviderKeyNotFoundError: there is no such key, or it is another owner's.
            AuthorityForgedError: its row was not written by this service as it stands.
        """
        row = await self._keys.get(provider_key_id)
        stored = None if row is None else await self._verify.key(row)
        if stored is None or not principal.may_act_on(stored.key.holder.owned_by):
            raise ProviderKeyNotFoundError("there is no such provider key", provider_key_id=provider_key_id)
        return stored

    async def replayed(self, body: RequestBody) -> StoredKey | None:
        """Return what the request id was answered with before, or None when it is new.

        Raises:
            RequestIdReusedError: it was used with another body.
        """
        recorded = await self._keys.find_request(body.scope, body.request_id)
        if recorded is None:
            return None
        body.ensure_same(self._keyring.current(), recorded)
        row = await self._keys.get_at(recorded.resource_id, recorded.audit_index)
        if row is None:
            raise ProviderKeyNotFoundError("there is no such provider key", provider_key_id=recorded.resource_id)
        return await self._verify.key(row)

    async def settle(self, body: RequestBody, attempt: Callable[[], Awaitable[StoredKey | PutResult]]) -> StoredKey:
        """Return the first answer of `attempt` that is final; each attempt reads the present state anew.

        Raises:
            StaleAuthorityError: the key kept changing, or keys were rotated again and again.
            RequestIdReusedError: another call used the request id meanwhile, with another body.
        """
        for _ in range(ATTEMPTS_MAX):
            try:
                result = await attempt()
            except KekNotPrimaryError:
                await self._keyring.reload()
                continue
            if isinstance(result, StoredKey):
                return result
            if result.status == "REPLAYED":
                replayed = await self.replayed(body)
                if replayed is not None:
                    return replayed
        raise StaleAuthorityError("the provider key changed again and again; read it and retry")

    def identity(self, body: RequestBody) -> RequestIdentity:
        """Return what to record a request id with."""
        return body.identity(self._keyring.current())

    def seal(self, key: ProviderKey, secret: Secret) -> SealedVersion:
        """Return `secret` sealed as the present version of `key`."""
        ring = self._keyring.current()
        version = ring.primary(KeyPurpose.EQUALITY_MAC).version
        return SealedVersion(
            envelope=seal(secret, context=key.envelope_context(ring.deployment), kek=ring.primary_kek()),
            equality_mac_version=version,
            equality_mac=equality_mac(ring, secret, version=version),
        )


def key_entry(
    kind: EntryKind, key: ProviderKey, *, asker: Asker, now: datetime, details: tuple[tuple[str, str], ...] = ()
) -> AuditEntry:
    """Return the audit entry of a change of `key`."""
    return AuditEntry(
        kind=kind,
        time=now,
        caller=asker.caller,
        actor=asker.actor,
        provider_key_id=key.provider_key_id,
        key_version=key.key_version,
        key_state=int(key.state),
        agent_id=key.holder.agent_id,
        account=key.holder.owned_by,
        details=details,
    )
