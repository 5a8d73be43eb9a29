"""ReportValidation: changes a key's state by what its test call found, before it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import EntryKind
from keyvault.domain.errors import ProviderKeyNotFoundError
from keyvault.domain.key_states import ValidationReport, after_validation, state_details
from keyvault.domain.lease_ids import ensure_granted
from keyvault.domain.new_keys import FieldChecks, check_text
from keyvault.domain.ownership import Principal
from keyvault.domain.requests import RequestBody, request_body
from keyvault.usecases.change_provider_keys import Asker, key_entry
from servicekit.ids import check_request_id

if TYPE_CHECKING:
    from datetime import datetime

    from keyvault.domain.canonical import Field
    from keyvault.domain.provider_keys import StoredKey
    from keyvault.ports import KeyringSource, ProviderKeyStore, PutResult
    from keyvault.usecases.change_provider_keys import ProviderKeys
    from keyvault.usecases.verify_rows import VerifyRows
    from servicekit.clock import Clock

RPC: Final = "ReportValidation"
EXPLANATION_CHARACTERS_MAX: Final = 500
MODELS_MAX: Final = 500
MODEL_CHARACTERS_MAX: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedValidation:
    """What a Router reports of a test call."""

    request_id: str
    caller: str
    holder: str
    lease_id: str
    provider_key_id: str
    report: ValidationReport


class ReportValidation:
    """Takes the report of one test call."""

    def __init__(
        self,
        *,
        store: ProviderKeyStore,
        keys: ProviderKeys,
        verify: VerifyRows,
        keyring: KeyringSource,
        clock: Clock,
    ) -> None:
        """Change the key through `keys`."""
        self._keyring = keyring
        self._store = store
        self._keys = keys
        self._verify = verify
        self._clock = clock

    async def __call__(self, asked: ReportedValidation) -> StoredKey:
        """Return the key after the change; a report on an earlier secret changes nothing.

        Raises:
            InvalidArgumentError: naming every field that does not fit.
            LeaseUnknownError: the holder was granted no such lease on this version of the key.
            RequestIdReusedError: the request id was used with another body.
            ProviderKeyNotFoundError: there is no such key.
            ProviderKeyRevokedError: the key is revoked.
            AuditUnavailableError: it is not known to be durable.
        """
        now = self._clock.now()
        _check(asked, now)
        ensure_granted(
            self._keyring.current(),
            asked.lease_id,
            holder=asked.holder,
            provider_key_id=asked.provider_key_id,
            key_version=asked.report.key_version,
        )
        body = _body(asked)
        replayed = await self._keys.replayed(body)
        if replayed is not None:
            return replayed

        async def attempt() -> StoredKey | PutResult:
            row = await self._store.get(asked.provider_key_id)
            if row is None:
                raise ProviderKeyNotFoundError("there is no such provider key", provider_key_id=asked.provider_key_id)
            present = await self._verify.key(row)
            key = after_validation(present.key, asked.report, now)
            if key is present.key:
                return present
            asker = Asker(caller=asked.caller, actor="", acting_for=Principal())
            details = (
                ("lease_id", asked.lease_id),
                ("verdict", asked.report.verdict.name),
                *state_details(present.key, key),
            )
            return await self._keys.write(
                key,
                expected_index=present.seal.audit_index,
                entry=key_entry(EntryKind.KEY_STATE_CHANGED, key, asker=asker, now=now, details=details),
                request=self._keys.identity(body),
            )

        return await self._keys.settle(body, attempt)


def _check(asked: ReportedValidation, now: datetime) -> None:
    checks = FieldChecks()
    report = asked.report
    checks.run(lambda: check_request_id(asked.request_id, now))
    checks.run(lambda: check_text("explanation", report.explanation, characters_max=EXPLANATION_CHARACTERS_MAX))
    if len(report.models) > MODELS_MAX:
        checks.complain("models", "TOO_MANY_MODELS", f"Send at most {MODELS_MAX} models.")
    for position, model in enumerate(report.models[:MODELS_MAX]):
        field = f"models[{position}]"
        checks.run(lambda field=field, model=model: check_text(field, model, characters_max=MODEL_CHARACTERS_MAX))  # type: ignore[misc]  # defaults bind
    checks.conclude()


def _body(asked: ReportedValidation) -> RequestBody:
    report = asked.report
    fields: tuple[Field, ...] = (
        asked.lease_id,
        asked.provider_key_id,
        report.key_version,
        int(report.verdict),
        report.explanation,
        *report.models,
        *(int(operation) for operation in report.operations),
    )
    return request_body(RPC, f"key:{asked.provider_key_id}", asked.request_id, fields)
