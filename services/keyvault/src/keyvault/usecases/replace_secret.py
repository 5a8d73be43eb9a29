"""ReplaceKeySecret: puts another secret, and if given another base URL, in the place of the old one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import EntryKind
from keyvault.domain.key_states import with_new_secret
from keyvault.domain.new_keys import FieldChecks
from keyvault.domain.ownership import AccountKind
from keyvault.domain.requests import RequestBody, request_body
from keyvault.usecases.change_provider_keys import Asker, ProviderKeys, key_entry
from keyvault.usecases.create_provider_key import ChangedKey
from keyvault.usecases.open_submission import OpenSubmission, SecretInput, SubmissionContext
from servicekit.ids import check_request_id

if TYPE_CHECKING:
    from datetime import datetime

    from keyvault.domain.provider_keys import ProviderKey, StoredKey
    from keyvault.domain.submitted_secrets import SubmittedSecret
    from keyvault.ports import PutResult
    from keyvault.usecases.check_base_url import CheckBaseUrl
    from servicekit.clock import Clock

RPC: Final = "ReplaceKeySecret"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretReplacement:
    """What is asked for, as it was sent."""

    request_id: str
    asker: Asker
    provider_key_id: str
    etag: str
    base_url: str
    secret_input: SecretInput


class ReplaceSecret:
    """Replaces the secret of a provider key. The old one is not kept."""

    def __init__(
        self, *, keys: ProviderKeys, open_submission: OpenSubmission, check_base_url: CheckBaseUrl, clock: Clock
    ) -> None:
        """Replace through `keys`."""
        self._keys = keys
        self._open_submission = open_submission
        self._check_base_url = check_base_url
        self._clock = clock

    async def __call__(self, asked: SecretReplacement) -> ChangedKey:
        """Return the key after the change, PENDING_VALIDATION.

        Raises:
            InvalidArgumentError: naming every field that does not fit.
            SealedSecretInvalidError: the sealed secret does not open for this request.
            RequestIdReusedError: the request id was used with another body.
            ProviderKeyNotFoundError: there is no such key, or it is another owner's.
            ProviderKeyRevokedError: the key is revoked.
            EtagMismatchError: the key changed since the caller read it.
            AuditUnavailableError: it is not known to be durable.
        """
        now = self._clock.now()
        check_request_id(asked.request_id, now)
        owned = await self._keys.owned(asked.provider_key_id, asked.asker.acting_for)
        base_url, submitted = self._checked(asked, owned.key)
        try:
            return ChangedKey(await self._stored(asked, base_url, submitted, now), submitted.adjustments)
        finally:
            submitted.secret.wipe()

    async def _stored(
        self, asked: SecretReplacement, base_url: str, submitted: SubmittedSecret, now: datetime
    ) -> StoredKey:
        body = _body(asked, submitted)
        replayed = await self._keys.replayed(body)
        if replayed is not None:
            return replayed
        fingerprint = self._open_submission.fingerprint(submitted.secret)

        async def attempt() -> StoredKey | PutResult:
            present = await self._keys.owned(asked.provider_key_id, asked.asker.acting_for)
            present.key.ensure_not_revoked()
            present.ensure_etag(asked.etag)
            key = replace(
                with_new_secret(present.key, now),
                base_url=base_url or present.key.base_url,
                fingerprint=fingerprint.digest,
                secret_suffix=fingerprint.suffix,
            )
            details = (("fingerprint", key.fingerprint), ("request_id", asked.request_id))
            return await self._keys.write(
                key,
                expected_index=present.seal.audit_index,
                entry=key_entry(EntryKind.KEY_SECRET_REPLACED, key, asker=asked.asker, now=now, details=details),
                secret=self._keys.seal(key, submitted.secret),
                request=self._keys.identity(body),
            )

        return await self._keys.settle(body, attempt)

    def _checked(self, asked: SecretReplacement, key: ProviderKey) -> tuple[str, SubmittedSecret]:
        checks = FieldChecks()
        base_url = ""
        if asked.base_url:
            base_url = checks.run(lambda: self._check_base_url(key.provider, asked.base_url)) or ""
        submitted = checks.run(
            lambda: self._open_submission(
                asked.secret_input,
                SubmissionContext(
                    principal=asked.asker.acting_for,
                    provider=key.provider,
                    base_url=asked.base_url,
                    request_id=asked.request_id,
                    organization_id=_organization_id(key),
                ),
            )
        )
        checks.conclude()
        if submitted is None:
            raise AssertionError("a check that returned nothing did not complain")
        return base_url, submitted


def _organization_id(key: ProviderKey) -> str:
    owned_by = key.holder.owned_by
    return owned_by.party_id if owned_by.kind is AccountKind.ORGANIZATION else ""


def _body(asked: SecretReplacement, submitted: SubmittedSecret) -> RequestBody:
    fields = (asked.provider_key_id, asked.etag, asked.base_url, submitted.secret.reveal())
    return request_body(RPC, asked.asker.acting_for.key, asked.request_id, fields)
