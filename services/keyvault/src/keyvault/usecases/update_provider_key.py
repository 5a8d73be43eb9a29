"""UpdateKey: changes what an owner says of a key, never its secret."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import EntryKind
from keyvault.domain.key_states import state_details, with_expire_time
from keyvault.domain.new_keys import (
    LABEL_CHARACTERS_MAX,
    FieldChecks,
    check_expire_time,
    check_mapping,
    check_priority,
    check_text,
    refused,
)
from keyvault.domain.provider_keys import (
    Custody,
    OperationRoute,
    ProviderKey,
    StoredKey,
    encode_mapping,
    time_field,
)
from keyvault.domain.requests import RequestBody, request_body
from keyvault.usecases.change_provider_keys import Asker, ProviderKeys, key_entry
from servicekit.ids import check_request_id

if TYPE_CHECKING:
    from keyvault.ports import Capabilities, PutResult
    from servicekit.clock import Clock

RPC: Final = "UpdateKey"
FIELDS: Final = frozenset({"label", "priority", "mapping", "custody", "expire_time"})


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUpdate:
    """What is to be changed: the fields named in `fields`, and no others."""

    request_id: str
    asker: Asker
    provider_key_id: str
    etag: str
    fields: frozenset[str]
    label: str
    priority: int
    mapping: tuple[OperationRoute, ...]
    custody: Custody | None
    expire_time: datetime | None


class UpdateProviderKey:
    """Updates a provider key."""

    def __init__(self, *, keys: ProviderKeys, capabilities: Capabilities, clock: Clock) -> None:
        """Update through `keys`."""
        self._keys = keys
        self._capabilities = capabilities
        self._clock = clock

    async def __call__(self, asked: KeyUpdate) -> StoredKey:
        """Return the key after the change.

        Raises:
            InvalidArgumentError: naming every field that does not fit.
            RequestIdReusedError: the request id was used with another body.
            ProviderKeyNotFoundError: there is no such key, or it is another owner's.
            ProviderKeyRevokedError: the key is revoked.
            EtagMismatchError: the key changed since the caller read it.
            AuditUnavailableError: it is not known to be durable.
        """
        now = self._clock.now()
        check_request_id(asked.request_id, now)
        _check_fields(asked.fields)
        body = _body(asked)
        replayed = await self._keys.replayed(body)
        if replayed is not None:
            return replayed

        async def attempt() -> StoredKey | PutResult:
            present = await self._keys.owned(asked.provider_key_id, asked.asker.acting_for)
            present.key.ensure_not_revoked()
            present.ensure_etag(asked.etag)
            key = self._changed(present.key, asked, now)
            details = (
                ("fields", ",".join(sorted(asked.fields))),
                ("request_id", asked.request_id),
                *state_details(present.key, key),
            )
            return await self._keys.write(
                key,
                expected_index=present.seal.audit_index,
                entry=key_entry(EntryKind.KEY_UPDATED, key, asker=asked.asker, now=now, details=details),
                request=self._keys.identity(body),
            )

        return await self._keys.settle(body, attempt)

    def _changed(self, key: ProviderKey, asked: KeyUpdate, now: datetime) -> ProviderKey:
        checks = FieldChecks()
        if "label" in asked.fields:
            label = checks.run(lambda: check_text("label", asked.label, characters_max=LABEL_CHARACTERS_MAX))
            key = replace(key, label=label or "")
        if "priority" in asked.fields:
            priority = checks.run(lambda: check_priority(asked.priority))
            key = replace(key, priority=priority or 0)
        if "mapping" in asked.fields:
            why_unable = partial(self._capabilities.why_unable, key.provider, key.base_url)
            mapping = checks.run(lambda: check_mapping(asked.mapping, why_unable))
            key = replace(key, mapping=mapping or ())
        if "custody" in asked.fields:
            custody = checks.run(lambda: _check_custody(asked.custody))
            key = replace(key, custody=custody or key.custody)
        if "expire_time" in asked.fields:
            expire_time = checks.run(lambda: check_expire_time(asked.expire_time, now))
            key = with_expire_time(key, expire_time, now)
        checks.conclude()
        return replace(key, update_time=now)


def _check_custody(custody: Custody | None) -> Custody:
    if custody is None:
        # CreateKey takes unset for CACHED. Here that would loosen what an owner made STRICT, by an omission.
        raise refused("custody", "REQUIRED", "Send CACHED or STRICT, or leave custody out of the mask.")
    return custody


def _check_fields(fields: frozenset[str]) -> None:
    checks = FieldChecks()
    if not fields:
        checks.complain("update_mask", "UPDATE_MASK_EMPTY", f"Name what to change: {', '.join(sorted(FIELDS))}.")
    if not fields <= FIELDS:
        remedy = f"Name only these: {', '.join(sorted(FIELDS))}. A base URL changes with ReplaceKeySecret."
        checks.complain("update_mask", "UPDATE_MASK_UNKNOWN", remedy)
    checks.conclude()


def _body(asked: KeyUpdate) -> RequestBody:
    return request_body(
        RPC,
        asked.asker.acting_for.key,
        asked.request_id,
        (
            asked.provider_key_id,
            asked.etag,
            ",".join(sorted(asked.fields)),
            asked.label,
            asked.priority,
            encode_mapping(asked.mapping),
            int(asked.custody or 0),
            time_field(asked.expire_time),
        ),
    )
