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
    erasure_from,
    erasure_to,
    key_to,
    listing_from,
    new_key_from,
    replacement_from,
    revocation_from,
    update_from,
)
from keyvault.api.share_mapping import share_end_from, share_from, share_listing_from, share_to
from keyvault.domain.keyring import KeyPurpose
from keyvault.domain.ownership import check_identifier
from keyvault.domain.sealing import submission_key_id, submission_public_key
from keyvault.ports import KeyringSource
from keyvault.usecases.bind_agent import BindAgent
from keyvault.usecases.change_shares import ShareKey, UnshareKey
from keyvault.usecases.create_provider_key import CreateProviderKey
from keyvault.usecases.erase_owner import EraseOwner, GetErasure
from keyvault.usecases.find_duplicates import FindDuplicates
from keyvault.usecases.list_shares import ListShares
from keyvault.usecases.read_provider_keys import GetProviderKey, ListProviderKeys
from keyvault.usecases.replace_secret import ReplaceSecret
from keyvault.usecases.revoke_provider_key import RevokeProviderKey
from keyvault.usecases.update_provider_key import UpdateProviderKey
from servicekit.clock import Clock
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
    share: ShareKey
    unshare: UnshareKey
    list_shares: ListShares
    erase_owner: EraseOwner
    get_erasure: GetErasure
    find_duplicates: FindDuplicates
    clock: Clock
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
    async def ShareKey(
        self, request: key_service_pb2.ShareKeyRequest, context: Context
    ) -> key_service_pb2.ShareKeyResponse:
        stored = await self._do.share(share_from(request, current_caller()))
        return key_service_pb2.ShareKeyResponse(share=share_to(stored))

    @override
    async def UnshareKey(
        self, request: key_service_pb2.UnshareKeyRequest, context: Context
    ) -> key_service_pb2.UnshareKeyResponse:
        ended = await self._do.unshare(share_end_from(request, current_caller()))
        return key_service_pb2.UnshareKeyResponse(
            authority_index=ended.stored.seal.audit_index,
            acknowledged_watchers=ended.acknowledged_watchers,
            expired_watchers=ended.expired_watchers,
        )

    @override
    async def ListShares(
        self, request: key_service_pb2.ListSharesRequest, context: Context
    ) -> key_service_pb2.ListSharesResponse:
        page = await self._do.list_shares(share_listing_from(request, current_caller()))
        return key_service_pb2.ListSharesResponse(
            shares=[share_to(stored) for stored in page.shares], next_page_token=page.next_page_token
        )

    @override
    async def EraseOwner(
        self, request: key_service_pb2.EraseOwnerRequest, context: Context
    ) -> key_service_pb2.EraseOwnerResponse:
        erasure = await self._do.erase_owner(erasure_from(request, current_caller()))
        return key_service_pb2.EraseOwnerResponse(erasure=erasure_to(erasure, self._do.clock.now()))

    @override
    async def GetErasure(
        self, request: key_service_pb2.GetErasureRequest, context: Context
    ) -> key_service_pb2.GetErasureResponse:
        principal = principal_from(request.acting_for, current_caller())
        erasure = await self._do.get_erasure(check_identifier("owner_id", request.owner_id), principal)
        return key_service_pb2.GetErasureResponse(erasure=erasure_to(erasure, self._do.clock.now()))

    @override
    async def FindDuplicates(
        self, request: key_service_pb2.FindDuplicatesRequest, context: Context
    ) -> key_service_pb2.FindDuplicatesResponse:
        principal = principal_from(request.acting_for, current_caller())
        equals = await self._do.find_duplicates(check_identifier("key_id", request.key_id), principal)
        return key_service_pb2.FindDuplicatesResponse(keys=[key_to(stored) for stored in equals])

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
