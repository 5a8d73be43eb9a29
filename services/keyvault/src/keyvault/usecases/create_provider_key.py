"""CreateKey: stores an owner's, or the platform's, provider key, sealed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from keyvault.domain.audit_log import EntryKind
from keyvault.domain.key_states import PENDING_REASON
from keyvault.domain.new_keys import (
    LABEL_CHARACTERS_MAX,
    FieldChecks,
    check_expire_time,
    check_mapping,
    check_priority,
    check_text,
    refused,
)
from keyvault.domain.ownership import Holder, Scope, check_holder, check_identifier
from keyvault.domain.provider_keys import (
    Custody,
    KeyState,
    OperationRoute,
    ProviderKey,
    StoredKey,
    encode_mapping,
    time_field,
)
from keyvault.domain.requests import RequestBody, request_body
from keyvault.domain.submitted_secrets import Adjustment, SubmittedSecret
from keyvault.ports import KeyFilter, PutResult
from keyvault.usecases.change_provider_keys import Asker, ProviderKeys, key_entry
from keyvault.usecases.open_submission import OpenSubmission, SecretInput, SubmissionContext
from servicekit.ids import check_request_id, new_uuid7

if TYPE_CHECKING:
    from keyvault.ports import Capabilities, ProviderKeyStore
    from keyvault.usecases.agent_bindings import AgentBindings
    from keyvault.usecases.check_base_url import CheckBaseUrl
    from servicekit.clock import Clock

RPC = "CreateKey"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """What is asked for, as it was sent."""

    request_id: str
    asker: Asker
    scope: Scope
    agent_id: str
    organization_id: str
    provider: str
    base_url: str
    label: str
    priority: int | None
    mapping: tuple[OperationRoute, ...]
    custody: Custody
    secret_input: SecretInput
    expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class ChangedKey:
    """The key as stored, and what was put right on the way."""

    stored: StoredKey
    adjustments: tuple[Adjustment, ...]


class PrepareKey:
    """Checks what is asked for and makes the key of it: every complaint at once."""

    def __init__(
        self, *, open_submission: OpenSubmission, check_base_url: CheckBaseUrl, capabilities: Capabilities
    ) -> None:
        """Check by the catalogue behind `capabilities`."""
        self._open_submission = open_submission
        self._check_base_url = check_base_url
        self._capabilities = capabilities

    def __call__(self, asked: NewKey, now: datetime) -> tuple[ProviderKey, SubmittedSecret]:
        """Return the new key and its secret.

        Raises:
            InvalidArgumentError: naming every field that does not fit, and its remedy.
            SealedSecretInvalidError: the sealed secret does not open for this request.
        """
        checks = FieldChecks()
        checks.run(lambda: check_request_id(asked.request_id, now))
        holder = checks.run(lambda: _holder(asked))
        if asked.agent_id:
            checks.run(lambda: check_identifier("agent_id", asked.agent_id))
        base_url = checks.run(lambda: self._check_base_url(asked.provider, asked.base_url))
        label = checks.run(lambda: check_text("label", asked.label, characters_max=LABEL_CHARACTERS_MAX))
        priority = checks.run(lambda: check_priority(asked.priority))
        checks.run(lambda: check_expire_time(asked.expire_time, now))
        why_unable = partial(self._capabilities.why_unable, asked.provider, base_url or "")
        mapping = checks.run(lambda: check_mapping(asked.mapping, why_unable))
        submitted = checks.run(lambda: self._submitted(asked))
        checks.conclude()
        if holder is None or base_url is None or label is None or priority is None:
            raise AssertionError("a check that returned nothing did not complain")
        if mapping is None or submitted is None:
            raise AssertionError("a check that returned nothing did not complain")
        fingerprint = self._open_submission.fingerprint(submitted.secret)
        key = ProviderKey(
            provider_key_id=new_uuid7(now),
            holder=holder,
            provider=asked.provider,
            base_url=base_url,
            label=label,
            priority=priority,
            mapping=mapping,
            custody=asked.custody,
            state=KeyState.PENDING_VALIDATION,
            state_reason=PENDING_REASON,
            cool_down_until=None,
            key_version=1,
            fingerprint=fingerprint.digest,
            secret_suffix=fingerprint.suffix,
            validated_models=(),
            validated_operations=(),
            create_time=now,
            update_time=now,
            validate_time=None,
            expire_time=asked.expire_time,
        )
        return key, submitted

    def _submitted(self, asked: NewKey) -> SubmittedSecret:
        context = SubmissionContext(
            principal=asked.asker.acting_for,
            provider=asked.provider,
            base_url=asked.base_url,
            request_id=asked.request_id,
            organization_id=asked.organization_id,
        )
        return self._open_submission(asked.secret_input, context)


class CreateProviderKey:
    """Creates a provider key. The same request gets the same key."""

    def __init__(
        self,
        *,
        prepare: PrepareKey,
        keys: ProviderKeys,
        store: ProviderKeyStore,
        agents: AgentBindings,
        clock: Clock,
        keys_per_account_max: int,
    ) -> None:
        """Create through `keys`."""
        self._prepare = prepare
        self._keys = keys
        self._store = store
        self._agents = agents
        self._clock = clock
        self._keys_per_account_max = keys_per_account_max

    async def __call__(self, asked: NewKey) -> ChangedKey:
        """Return the new key, PENDING_VALIDATION.

        Raises:
            InvalidArgumentError: naming every field that does not fit.
            SealedSecretInvalidError: the sealed secret does not open for this request.
            RequestIdReusedError: the request id was used with another body.
            AgentNotFoundError: the agent is not registered, or is another owner's.
            AuditUnavailableError: it is not known to be durable.
        """
        now = self._clock.now()
        key, submitted = self._prepare(asked, now)
        try:
            return ChangedKey(await self._stored(asked, key, submitted, now), submitted.adjustments)
        finally:
            submitted.secret.wipe()

    async def _stored(self, asked: NewKey, key: ProviderKey, submitted: SubmittedSecret, now: datetime) -> StoredKey:
        body = _body(asked, submitted)
        replayed = await self._keys.replayed(body)
        if replayed is not None:
            return replayed
        if asked.scope is Scope.AGENT:
            await self._agents.owned(asked.agent_id, asked.asker.acting_for)
        await self._ensure_room(key)
        entry = key_entry(
            EntryKind.KEY_CREATED,
            key,
            asker=asked.asker,
            now=now,
            details=(("provider", key.provider), ("fingerprint", key.fingerprint), ("request_id", asked.request_id)),
        )

        async def attempt() -> StoredKey | PutResult:
            return await self._keys.write(
                key,
                expected_index=0,
                entry=entry,
                secret=self._keys.seal(key, submitted.secret),
                request=self._keys.identity(body),
            )

        return await self._keys.settle(body, attempt)

    async def _ensure_room(self, key: ProviderKey) -> None:
        bound = self._keys_per_account_max
        present = await self._store.find(KeyFilter(account=key.holder.owned_by, limit=bound))
        if len(present) >= bound:
            remedy = f"An account may have {bound} keys that are not revoked. Revoke those that are not needed."
            raise refused("acting_for", "TOO_MANY_KEYS", remedy)


def _holder(asked: NewKey) -> Holder:
    account = asked.asker.acting_for.acting_account(asked.organization_id)
    return check_holder(Holder(asked.scope, account, asked.agent_id))


def _body(asked: NewKey, submitted: SubmittedSecret) -> RequestBody:
    return request_body(
        RPC,
        asked.asker.acting_for.key,
        asked.request_id,
        (
            int(asked.scope),
            asked.agent_id,
            asked.organization_id,
            asked.provider,
            asked.base_url,
            asked.label,
            -1 if asked.priority is None else asked.priority,
            encode_mapping(asked.mapping),
            int(asked.custody),
            time_field(asked.expire_time),
            submitted.secret.reveal(),
        ),
    )
