"""KeyService: keys and bindings, for those who act for an owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from byok.keyvault.v1 import key_service_pb2, key_service_pb2_grpc
from keyvault.api.fields import principal_from
from keyvault.api.key_mapping import (
    adjustments_to,
    binding_from,
    binding_to,
    key_to,
    listing_from,
    new_key_from,
    replacement_from,
    revocation_from,
    update_from,
)
from keyvault.domain.keyring import KeyPurpose
from keyvault.domain.ownership import check_identifier
from keyvault.domain.sealing import submission_key_id, submission_public_key
from keyvault.ports import KeyringSource
from keyvault.usecases.bind_agent import BindAgent
from keyvault.usecases.create_provider_key import CreateProviderKey
from keyvault.usecases.read_provider_keys import GetProviderKey, ListProviderKeys
from keyvault.usecases.replace_secret import ReplaceSecret
from keyvault.usecases.revoke_provider_key import RevokeProviderKey
from keyvault.usecases.update_provider_key import UpdateProviderKey
from servicekit.identity import current_caller

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUseCases:
    """What the service does."""

    create: CreateProviderKey
    get: GetProviderKey
    list: ListProviderKeys
    update: UpdateProviderKey
    replace_secret: ReplaceSecret
    revoke: RevokeProviderKey
    bind_agent: BindAgent
    keyring: KeyringSource


class KeyServicer(key_service_pb2_grpc.KeyServiceServicer):
    """Takes calls, asks use cases, answers."""

    def __init__(self, usecases: KeyUseCases) -> None:
        """Serve `usecases`."""
        self._do = usecases

    @override
    async def CreateKey(
        self, request: key_service_pb2.CreateKeyRequest, context: Context
    ) -> key_service_pb2.CreateKeyResponse:
        created = await self._do.create(new_key_from(request, current_caller()))
        return key_service_pb2.CreateKeyResponse(
            key=key_to(created.stored), adjustments=adjustments_to(created.adjustments)
        )

    @override
    async def GetKey(self, request: key_service_pb2.GetKeyRequest, context: Context) -> key_service_pb2.GetKeyResponse:
        principal = principal_from(request.acting_for, current_caller())
        stored = await self._do.get(check_identifier("key_id", request.key_id), principal)
        return key_service_pb2.GetKeyResponse(key=key_to(stored))

    @override
    async def ListKeys(
        self, request: key_service_pb2.ListKeysRequest, context: Context
    ) -> key_service_pb2.ListKeysResponse:
        page = await self._do.list(listing_from(request, current_caller()))
        return key_service_pb2.ListKeysResponse(
            keys=[key_to(stored) for stored in page.keys], next_page_token=page.next_page_token
        )

    @override
    async def UpdateKey(
        self, request: key_service_pb2.UpdateKeyRequest, context: Context
    ) -> key_service_pb2.UpdateKeyResponse:
        stored = await self._do.update(update_from(request, current_caller()))
        return key_service_pb2.UpdateKeyResponse(key=key_to(stored))

    @override
    async def ReplaceKeySecret(
        self, request: key_service_pb2.ReplaceKeySecretRequest, context: Context
    ) -> key_service_pb2.ReplaceKeySecretResponse:
        replaced = await self._do.replace_secret(replacement_from(request, current_caller()))
        return key_service_pb2.ReplaceKeySecretResponse(
            key=key_to(replaced.stored), adjustments=adjustments_to(replaced.adjustments)
        )

    @override
    async def RevokeKey(
        self, request: key_service_pb2.RevokeKeyRequest, context: Context
    ) -> key_service_pb2.RevokeKeyResponse:
        revoked = await self._do.revoke(revocation_from(request, current_caller()))
        return key_service_pb2.RevokeKeyResponse(
            key=key_to(revoked.stored),
            authority_index=revoked.stored.seal.audit_index,
            acknowledged_watchers=revoked.acknowledged_watchers,
            expired_watchers=revoked.expired_watchers,
        )

    @override
    async def BindAgent(
        self, request: key_service_pb2.BindAgentRequest, context: Context
    ) -> key_service_pb2.BindAgentResponse:
        stored = await self._do.bind_agent(binding_from(request, current_caller()))
        return key_service_pb2.BindAgentResponse(binding=binding_to(stored))

    @override
    async def GetSubmissionKey(
        self, request: key_service_pb2.GetSubmissionKeyRequest, context: Context
    ) -> key_service_pb2.GetSubmissionKeyResponse:
        ring = self._do.keyring.current()
        key = ring.primary(KeyPurpose.SUBMISSION)
        return key_service_pb2.GetSubmissionKeyResponse(
            submission_key_id=submission_key_id(key),
            public_key=submission_public_key(key),
            deployment=ring.deployment,
        )
