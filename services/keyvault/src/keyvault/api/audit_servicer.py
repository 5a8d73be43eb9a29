"""AuditService: the log with its proofs, for owners, the witness and operators."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from byok.keyvault.v1 import audit_service_pb2, audit_service_pb2_grpc
from keyvault.api.audit_mapping import (
    export_from,
    exported_to,
    feed_to,
    listing_from,
    page_to,
    question_from,
    verification_to,
)
from keyvault.domain.log_verification import ALL_CHECKS
from keyvault.usecases.export_entries import ExportEntries
from keyvault.usecases.list_entries import ListEntries
from keyvault.usecases.prove_sizes import ProveSizes
from keyvault.usecases.read_feed import ReadFeed
from keyvault.usecases.verify_log import VerifyLog
from servicekit.errors import OverloadedError
from servicekit.identity import current_caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditUseCases:
    """What the service does."""

    list_entries: ListEntries
    read_feed: ReadFeed
    prove: ProveSizes
    verify: VerifyLog
    export: ExportEntries


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    """Takes calls, asks use cases, answers."""

    def __init__(self, usecases: AuditUseCases) -> None:
        """Serve `usecases`."""
        self._do = usecases
        # One at a time: a verification reads the whole log, and leases must not wait for many of them.
        self._verifying = asyncio.Lock()

    @override
    async def ListEntries(
        self, request: audit_service_pb2.ListEntriesRequest, context: Context
    ) -> audit_service_pb2.ListEntriesResponse:
        return page_to(await self._do.list_entries(listing_from(request, current_caller())))

    @override
    async def ReadFeed(
        self, request: audit_service_pb2.ReadFeedRequest, context: Context
    ) -> audit_service_pb2.ReadFeedResponse:
        return feed_to(await self._do.read_feed(question_from(request)))

    @override
    async def GetCheckpoint(
        self, request: audit_service_pb2.GetCheckpointRequest, context: Context
    ) -> audit_service_pb2.GetCheckpointResponse:
        signed, keys = await self._do.prove.checkpoint(request.covering_index)
        return audit_service_pb2.GetCheckpointResponse(checkpoint=signed.note, verifier_keys=keys)

    @override
    async def GetInclusionProof(
        self, request: audit_service_pb2.GetInclusionProofRequest, context: Context
    ) -> audit_service_pb2.GetInclusionProofResponse:
        proved = await self._do.prove.inclusion(request.audit_index, request.tree_size)
        return audit_service_pb2.GetInclusionProofResponse(
            leaf_hash=proved.leaf_hash, proof=proved.proof, tree_size=proved.size, root_hash=proved.root
        )

    @override
    async def GetConsistencyProof(
        self, request: audit_service_pb2.GetConsistencyProofRequest, context: Context
    ) -> audit_service_pb2.GetConsistencyProofResponse:
        proved = await self._do.prove.consistency(request.old_size, request.new_size)
        return audit_service_pb2.GetConsistencyProofResponse(
            proof=proved.proof, new_size=proved.size, new_root_hash=proved.root
        )

    @override
    async def ExportEntries(
        self, request: audit_service_pb2.ExportEntriesRequest, context: Context
    ) -> AsyncIterator[audit_service_pb2.ExportEntriesResponse]:
        async for page in self._do.export(*export_from(request)):
            yield exported_to(page)

    @override
    async def VerifyLog(
        self, request: audit_service_pb2.VerifyLogRequest, context: Context
    ) -> AsyncIterator[audit_service_pb2.VerifyLogResponse]:
        if self._verifying.locked():
            raise OverloadedError("this replica verifies the log for somebody else; wait for that, or ask another")
        async with self._verifying:
            async for step in self._do.verify(request.first_index, request.pinned_checkpoint, ALL_CHECKS):
                yield verification_to(step)
