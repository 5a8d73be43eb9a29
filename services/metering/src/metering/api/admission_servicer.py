"""AdmissionService: holds and settlements, for Router processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from typing_extensions import override

from byok.metering.v1 import admission_service_pb2, admission_service_pb2_grpc, reservation_pb2
from metering.api import admission_mapping as mapping
from metering.api.errors import TABLE
from metering.api.fields import account_from, checked_request_id, invalid, ms_to, optional_identifier
from metering.domain.enums import OperationState
from metering.usecases.extend_batch import ExtendBatch
from metering.usecases.list_watermarks import ListWatermarks
from metering.usecases.lookup_operation import LookupOperation
from metering.usecases.release_batch import ReleaseBatch
from metering.usecases.reserve_batch import ReserveBatch
from metering.usecases.settle_batch import SettleBatch
from servicekit.clock import Clock
from servicekit.errors import DomainError

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

ITEMS_MAX: Final = 256

Item = TypeVar("Item")
Command = TypeVar("Command")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionUseCases:
    """What the service does."""

    reserve: ReserveBatch
    settle: SettleBatch
    release: ReleaseBatch
    extend: ExtendBatch
    lookup: LookupOperation
    watermarks: ListWatermarks


class AdmissionServicer(admission_service_pb2_grpc.AdmissionServiceServicer):
    """Items that cannot be read are answered by themselves; the others go on as one batch."""

    def __init__(self, usecases: AdmissionUseCases, clock: Clock) -> None:
        """Serve use cases."""
        self._do = usecases
        self._clock = clock

    @override
    async def ReserveBatch(
        self, request: admission_service_pb2.ReserveBatchRequest, context: "Context"
    ) -> admission_service_pb2.ReserveBatchResponse:
        commands, refused = self._read(request.items, mapping.reserve_request)
        results = iter(await self._do.reserve(commands) if commands else ())
        accounts = iter(command.command.account for command in commands)
        return admission_service_pb2.ReserveBatchResponse(
            results=[
                reservation_pb2.ReserveResult(error=TABLE.status(refused[i]))
                if i in refused
                else mapping.reserve_result(next(results), next(accounts))
                for i in range(len(request.items))
            ]
        )

    @override
    async def SettleBatch(
        self, request: admission_service_pb2.SettleBatchRequest, context: "Context"
    ) -> admission_service_pb2.SettleBatchResponse:
        commands, refused = self._read(request.items, mapping.settle_command)
        results = iter(await self._do.settle(commands) if commands else ())
        return admission_service_pb2.SettleBatchResponse(
            results=[
                mapping.settle_result(refused[i] if i in refused else next(results)) for i in range(len(request.items))
            ]
        )

    @override
    async def ReleaseBatch(
        self, request: admission_service_pb2.ReleaseBatchRequest, context: "Context"
    ) -> admission_service_pb2.ReleaseBatchResponse:
        commands, refused = self._read(request.items, mapping.release_command)
        results = iter(await self._do.release(commands) if commands else ())
        return admission_service_pb2.ReleaseBatchResponse(
            results=[
                mapping.release_result(refused[i] if i in refused else next(results)) for i in range(len(request.items))
            ]
        )

    @override
    async def ExtendBatch(
        self, request: admission_service_pb2.ExtendBatchRequest, context: "Context"
    ) -> admission_service_pb2.ExtendBatchResponse:
        commands, refused = self._read(request.items, mapping.extend_command)
        results = iter(await self._do.extend(commands) if commands else ())
        return admission_service_pb2.ExtendBatchResponse(
            results=[
                mapping.extend_result(refused[i] if i in refused else next(results)) for i in range(len(request.items))
            ]
        )

    @override
    async def Lookup(
        self, request: admission_service_pb2.LookupRequest, context: "Context"
    ) -> admission_service_pb2.LookupResponse:
        moment = mapping.Moment.of(self._clock.now())
        checked_request_id(request.request_id, moment.now, moment.now_ms)
        account = account_from(request.account, "account") if request.HasField("account") else None
        if account is None and not request.agent_id:
            raise invalid("account", "ACCOUNT_MISSING", "must be set where no agent is named")
        found = await self._do.lookup(
            request.request_id,
            agent_id=optional_identifier(request.agent_id, "agent_id"),
            account=account,
            body_hash=mapping.lookup_body_hash(request),
        )
        response = admission_service_pb2.LookupResponse(
            state=admission_service_pb2.OperationState.ValueType(found.found.state.value)
        )
        if found.found.state is OperationState.HELD:
            response.holder = found.found.holder
            response.expire_time.CopyFrom(ms_to(found.found.expire_ms))
        if found.outcome is not None:
            response.final_outcome.CopyFrom(mapping.final_outcome(found.outcome))
        return response

    @override
    async def ListWatermarks(
        self, request: admission_service_pb2.ListWatermarksRequest, context: "Context"
    ) -> admission_service_pb2.ListWatermarksResponse:
        return admission_service_pb2.ListWatermarksResponse(
            watermarks=[
                reservation_pb2.OutboxPosition(
                    partition=each.partition, generation=each.generation, sequence=each.sequence
                )
                for each in await self._do.watermarks()
            ]
        )

    def _read(
        self, items: Sequence[Item], read: Callable[[Item, mapping.Moment], Command]
    ) -> tuple[list[Command], dict[int, DomainError]]:
        if not 1 <= len(items) <= ITEMS_MAX:
            raise invalid("items", "ITEMS_OUT_OF_RANGE", f"must be 1 to {ITEMS_MAX}")
        moment = mapping.Moment.of(self._clock.now())
        commands: list[Command] = []
        refused: dict[int, DomainError] = {}
        for i, item in enumerate(items):
            try:
                commands.append(read(item, moment))
            except DomainError as error:
                refused[i] = error
        return commands, refused
