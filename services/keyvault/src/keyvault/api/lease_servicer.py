"""LeaseService: leases of keys, for Router processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from byok.keyvault.v1 import lease_service_pb2, lease_service_pb2_grpc
from keyvault.api.candidate_mapping import candidates_query_from, candidates_to
from keyvault.api.key_mapping import key_to
from keyvault.api.lease_mapping import (
    claim_from,
    claims_to,
    holder_from,
    lease_call_from,
    leases_to,
    outcome_to,
    outcomes_from,
    validation_from,
    watch_message_to,
)
from keyvault.domain.new_keys import refused
from keyvault.ports import KeyringSource
from keyvault.usecases.acquire_leases import LeaseCall, LeaseOutcome
from keyvault.usecases.claim_key_checks import ClaimKeyChecks
from keyvault.usecases.list_candidates import ListCandidates
from keyvault.usecases.report_outcomes import ReportedOutcome, ReportOutcomes
from keyvault.usecases.report_validation import ReportValidation
from keyvault.usecases.watch_authority import WatchHub
from servicekit.errors import DomainError
from servicekit.identity import current_caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from keyvault.usecases.watch_authority import Watch

    Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseUseCases:
    """What the service does. `acquire` gathers concurrent calls into batches; `count` counts outcomes."""

    acquire: Callable[[LeaseCall], Awaitable[list[LeaseOutcome]]]
    count: Callable[[list[LeaseOutcome]], None]
    claim: ClaimKeyChecks
    list_candidates: ListCandidates
    report_outcomes: ReportOutcomes
    report_validation: ReportValidation
    hub: WatchHub
    keyring: KeyringSource


class LeaseServicer(lease_service_pb2_grpc.LeaseServiceServicer):
    """Takes calls, asks use cases, answers."""

    def __init__(self, usecases: LeaseUseCases) -> None:
        """Serve `usecases`."""
        self._do = usecases

    @override
    async def AcquireLeases(
        self, request: lease_service_pb2.AcquireLeasesRequest, context: Context
    ) -> lease_service_pb2.AcquireLeasesResponse:
        call, recipient = lease_call_from(request, current_caller())
        outcomes = await self._do.acquire(call)
        self._do.count(outcomes)
        deployment = self._do.keyring.current().deployment
        return leases_to(outcomes, recipient=recipient, deployment=deployment, holder=call.holder)

    @override
    async def ClaimKeysForValidation(
        self, request: lease_service_pb2.ClaimKeysForValidationRequest, context: Context
    ) -> lease_service_pb2.ClaimKeysForValidationResponse:
        call, recipient = claim_from(request, current_caller())
        claimed = await self._do.claim(call)
        deployment = self._do.keyring.current().deployment
        return claims_to(claimed, recipient=recipient, deployment=deployment, holder=call.holder)

    @override
    async def ListCandidates(
        self, request: lease_service_pb2.ListCandidatesRequest, context: Context
    ) -> lease_service_pb2.ListCandidatesResponse:
        purpose, required_space = candidates_query_from(request, current_caller())
        return candidates_to(await self._do.list_candidates(purpose, required_space))

    @override
    async def ReportOutcomes(
        self, request: lease_service_pb2.ReportOutcomesRequest, context: Context
    ) -> lease_service_pb2.ReportOutcomesResponse:
        parsed = outcomes_from(request)
        taken = [each for each in parsed if isinstance(each, ReportedOutcome)]
        states = iter(await self._do.report_outcomes(current_caller().uri, taken) if taken else [])
        results = [each if isinstance(each, DomainError) else next(states) for each in parsed]
        return lease_service_pb2.ReportOutcomesResponse(results=[outcome_to(each) for each in results])

    @override
    async def ReportValidation(
        self, request: lease_service_pb2.ReportValidationRequest, context: Context
    ) -> lease_service_pb2.ReportValidationResponse:
        stored = await self._do.report_validation(validation_from(request, current_caller()))
        return lease_service_pb2.ReportValidationResponse(key=key_to(stored))

    @override
    async def WatchAuthority(
        self, request_iterator: AsyncIterator[lease_service_pb2.WatchAuthorityRequest], context: Context
    ) -> AsyncIterator[lease_service_pb2.WatchAuthorityResponse]:
        requests = aiter(request_iterator)
        hello = await _hello(requests)
        watch = await self._do.hub.open(
            caller=current_caller().uri,
            holder=holder_from(hello.holder, "hello.holder"),
            resume_index=hello.resume_index,
        )
        reading = asyncio.create_task(_read(requests, watch))
        try:
            async for message in watch.messages():
                yield watch_message_to(message)
        finally:
            self._do.hub.close(watch)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading


async def _hello(
    requests: AsyncIterator[lease_service_pb2.WatchAuthorityRequest],
) -> lease_service_pb2.WatchHello:
    first = await anext(requests, None)
    if first is None or first.WhichOneof("message") != "hello":
        raise refused("hello", "REQUIRED", "Send hello as the first message of a watch.")
    return first.hello


async def _read(requests: AsyncIterator[lease_service_pb2.WatchAuthorityRequest], watch: Watch) -> None:
    """Take pings and acknowledgements until the Router ends its side, and with it the watch."""
    try:
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "ping":
                watch.ping(request.ping.monotonic_ns)
            elif kind == "ack":
                watch.ack(request.ack.authority_index)
            else:
                break
    finally:
        watch.close()
