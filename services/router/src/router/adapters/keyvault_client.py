"""Talks to KeyVault's LeaseService: leases in batches, sealed to this process; outcomes in batches; validations.

The key pair that batches are sealed to is made when the process starts and never leaves it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import grpc
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from google.protobuf.message import DecodeError
from typing_extensions import override

from byok.keyvault.v1 import lease_pb2, provider_key_pb2
from byok.keyvault.v1.lease_service_pb2 import (
    AcquireLeasesRequest,
    ClaimKeysForValidationRequest,
    LeaseOutcome,
    ReportOutcomesRequest,
    ReportValidationRequest,
)
from catalogue.models import Operation
from router.adapters.lease_messages import (
    VERDICTS,
    lease_item,
    lease_of,
    no_key_of,
    outcome_message,
    refusal_by_keyvault,
)
from router.domain.leases import AccountKind, DueKey, Lease, LeaseQuery, OutcomeKind
from router.domain.refusals import KeyCorruptError, SuiteUnavailableError
from router.messages import OPERATIONS
from router.ports import DueKeys
from servicekit.coalescer import Coalescer, CoalescerLimits
from servicekit.wire import error_from_rpc, remote_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from byok.keyvault.v1.lease_service_pb2 import AcquireLeasesResponse, ClaimKeysForValidationResponse
    from byok.keyvault.v1.lease_service_pb2_grpc import LeaseServiceStub
    from router.domain.leases import NoKey, Outcome
    from router.ports import ValidationReport
    from servicekit.clock import Clock

_log = structlog.get_logger("router.keyvault")

_INFO: Final = b"byok.lease.v1"
# That a key works is worth telling once a second, not once a call.
_SUCCESS_TOLD_EVERY: Final = timedelta(seconds=1)
_OF_ONE_ITEM: Final = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED})
_SUCCESSES_REMEMBERED_MAX: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyVaultLimits:
    """Bounds of what is asked of KeyVault."""

    lease_timeout: timedelta
    report_timeout: timedelta
    lease_batch_max: int
    outcome_batch_max: int
    outcome_linger: timedelta
    queue_max: int


class KeyVaultClient(DueKeys):
    """A client of one KeyVault target; belongs to one event loop."""

    def __init__(self, stub: LeaseServiceStub, *, holder: str, limits: KeyVaultLimits, clock: Clock) -> None:
        """Lease as `holder`, one incarnation of this process."""
        self._stub = stub
        self._holder = holder
        self._limits = limits
        self._clock = clock
        self._private_key = X25519PrivateKey.generate()
        self._public_key = self._private_key.public_key().public_bytes_raw()
        self._suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
        self._leases: Coalescer[LeaseQuery, Lease | NoKey] = Coalescer(
            self._acquire_batch,
            limits=CoalescerLimits(batch_max=limits.lease_batch_max, queue_max=limits.queue_max),
            clock=clock,
        )
        self._outcomes: Coalescer[LeaseOutcome, None] = Coalescer(
            self._report_batch,
            limits=CoalescerLimits(
                batch_max=limits.outcome_batch_max, queue_max=limits.queue_max, linger_max=limits.outcome_linger
            ),
            clock=clock,
        )
        self._told: dict[tuple[str, int], float] = {}

    async def acquire(self, query: LeaseQuery) -> Lease | NoKey:
        """Return a lease, or why there is none.

        Raises:
            DomainError: KeyVault refused, or cannot be reached.
        """
        return await self._leases.submit(query)

    def report(self, outcome: Outcome) -> None:
        """Tell how a call went, with the next batch; under overload, reports are dropped first."""
        now = self._clock.monotonic()
        if outcome.kind is OutcomeKind.SUCCEEDED:
            key = (outcome.key_id, outcome.key_version)
            if now - self._told.get(key, float("-inf")) < _SUCCESS_TOLD_EVERY.total_seconds():
                return
            if len(self._told) >= _SUCCESSES_REMEMBERED_MAX:
                self._told.clear()
            self._told[key] = now
        try:
            self._outcomes.submit_nowait(outcome_message(outcome, now=now))
        except Exception as error:  # noqa: BLE001 (the call went well or badly whatever becomes of its report)
            _log.warning("outcome.dropped", key_id=outcome.key_id, kind=outcome.kind.value, error=type(error).__name__)

    async def report_validation(self, report: ValidationReport) -> bytes:
        """Change the key's state; return the key as a serialized message.

        Raises:
            DomainError: KeyVault refused, or cannot be reached.
        """
        lease = report.lease
        request = ReportValidationRequest(
            request_id=report.request_id,
            lease_id=lease.lease_id,
            key_id=lease.key_id,
            key_version=lease.key_version,
            verdict=VERDICTS[report.verdict],
            explanation=report.explanation,
            models=report.models,
            operations=[OPERATIONS[operation] for operation in report.operations],
            holder=self._holder,
        )
        try:
            response = await self._stub.ReportValidation(request)
        except grpc.aio.AioRpcError as error:
            raise refusal_by_keyvault(error_from_rpc(error), key_id=lease.key_id) from None
        return response.key.SerializeToString()

    @override
    async def claim_due(self, keys_max: int, /) -> tuple[Sequence[DueKey], timedelta]:
        request_time = self._clock.monotonic()
        request = ClaimKeysForValidationRequest(
            holder=self._holder, recipient_public_key=self._public_key, claims_max=keys_max
        )
        try:
            response = await self._stub.ClaimKeysForValidation(
                request, timeout=self._limits.lease_timeout.total_seconds()
            )
        except grpc.aio.AioRpcError as error:
            raise refusal_by_keyvault(error_from_rpc(error)) from None
        secrets = self._open(response)
        due = []
        for result in response.results:
            query = LeaseQuery(operation=Operation.KEY_VALIDATION, key_id=result.lease.key_id)
            lease = _result(result, query, secrets, request_time)
            # What does not open is left: its claim ends by itself, and KeyVault has said what is wrong.
            if isinstance(lease, Lease):
                due.append(DueKey(lease=lease, is_free=_is_free(lease, result.lease.state)))
        return due, response.retry_after.ToTimedelta()

    async def aclose(self) -> None:
        """Send what is queued."""
        await self._leases.aclose()
        await self._outcomes.aclose()

    async def _acquire_batch(self, queries: list[LeaseQuery]) -> Sequence[Lease | NoKey | Exception]:
        # Lives count from before the request, so that no delay on the way can lengthen one.
        request_time = self._clock.monotonic()
        request = AcquireLeasesRequest(
            holder=self._holder,
            recipient_public_key=self._public_key,
            items=[lease_item(query) for query in queries],
        )
        try:
            response = await self._stub.AcquireLeases(request, timeout=self._limits.lease_timeout.total_seconds())
        except grpc.aio.AioRpcError as error:
            refused = error_from_rpc(error)
            if refused.code in _OF_ONE_ITEM and len(queries) > 1:
                # One bad item must not cost the others their leases.
                alone = await asyncio.gather(*(self._acquire_batch([query]) for query in queries))
                return [found for one in alone for found in one]
            _log.warning("leases.not_acquired", leases=len(queries), code=refused.code.name, reason=refused.reason)
            return [refusal_by_keyvault(refused, agent_id=query.agent_id, key_id=query.key_id) for query in queries]
        if len(response.results) != len(queries):
            return [SuiteUnavailableError(service="keyvault")] * len(queries)
        secrets = self._open(response)
        return [
            _result(result, query, secrets, request_time)
            for result, query in zip(response.results, queries, strict=True)
        ]

    def _open(
        self, response: AcquireLeasesResponse | ClaimKeysForValidationResponse
    ) -> Sequence[lease_pb2.SealedLease]:
        if not response.sealed_leases:
            return ()
        parts = (_INFO, response.deployment.encode(), self._holder.encode())
        info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        try:
            opened = self._suite.decrypt(response.sealed_leases, self._private_key, info)
            return lease_pb2.SealedLeases.FromString(opened).leases
        except (InvalidTag, ValueError, DecodeError):
            # Nothing of the message is told: it may hold keys.
            _log.error("lease.batch_does_not_open", leases=len(response.results))
            return ()

    async def _report_batch(self, outcomes: list[LeaseOutcome]) -> Sequence[Exception | None]:
        request = ReportOutcomesRequest(holder=self._holder, outcomes=outcomes)
        try:
            await self._stub.ReportOutcomes(request, timeout=self._limits.report_timeout.total_seconds())
        except grpc.aio.AioRpcError as error:
            _log.warning("outcomes.not_reported", outcomes=len(outcomes), code=error.code().name)
        return [None] * len(outcomes)


def _is_free(lease: Lease, state: int) -> bool:
    # A key that works is not worth its owner's money every day, and an organization did not say who may spend its.
    return state == provider_key_pb2.KEY_STATE_ACTIVE or lease.owned_by.kind is AccountKind.ORGANIZATION


def _result(
    result: lease_pb2.LeaseResult,
    query: LeaseQuery,
    secrets: Sequence[lease_pb2.SealedLease],
    request_time: float,
) -> Lease | NoKey | Exception:
    match result.WhichOneof("result"):
        case "lease":
            index = result.lease.sealed_index
            if not 0 <= index < len(secrets):
                return KeyCorruptError(provider_key_id=result.lease.key_id)
            try:
                return lease_of(result.lease, secrets[index], query=query, request_time=request_time)
            except KeyCorruptError as error:
                return error
        case "no_usable_key":
            return no_key_of(result.no_usable_key, query=query, request_time=request_time)
        case "error":
            return refusal_by_keyvault(remote_error(result.error), agent_id=query.agent_id, key_id=query.key_id)
        case _:
            return SuiteUnavailableError(service="keyvault")
