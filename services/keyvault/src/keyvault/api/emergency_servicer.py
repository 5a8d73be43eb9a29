"""EmergencyService: the emergency stop, for operators, and for owners as far as it is theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from byok.keyvault.v1 import emergency_service_pb2, emergency_service_pb2_grpc
from keyvault.api.fields import actor_from, principal_from
from keyvault.api.key_mapping import timestamp_to
from keyvault.domain.halts import HaltKind, HaltScope
from keyvault.domain.new_keys import refused
from keyvault.usecases.change_halts import HaltLeases, NewHalt, ResumeLeases, Resumption
from keyvault.usecases.change_provider_keys import Asker
from keyvault.usecases.list_halts import ListHalts
from servicekit.identity import current_caller

if TYPE_CHECKING:
    import grpc

    from keyvault.domain.halts import Halt
    from servicekit.identity import Caller

    Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmergencyUseCases:
    """What the service does."""

    halt: HaltLeases
    resume: ResumeLeases
    list_halts: ListHalts


class EmergencyServicer(emergency_service_pb2_grpc.EmergencyServiceServicer):
    """Takes calls, asks use cases, answers."""

    def __init__(self, usecases: EmergencyUseCases) -> None:
        """Serve `usecases`."""
        self._do = usecases

    @override
    async def Halt(
        self, request: emergency_service_pb2.HaltRequest, context: Context
    ) -> emergency_service_pb2.HaltResponse:
        asked = NewHalt(
            request_id=request.request_id,
            asker=_asker_from(request, current_caller()),
            scope=scope_from(request.scope),
            reason=request.reason,
        )
        made = await self._do.halt(asked)
        return emergency_service_pb2.HaltResponse(
            halt=halt_to(made.halt),
            acknowledged_watchers=made.acknowledged_watchers,
            expired_watchers=made.expired_watchers,
        )

    @override
    async def Resume(
        self, request: emergency_service_pb2.ResumeRequest, context: Context
    ) -> emergency_service_pb2.ResumeResponse:
        asked = Resumption(
            request_id=request.request_id, asker=_asker_from(request, current_caller()), halt_id=request.halt_id
        )
        return emergency_service_pb2.ResumeResponse(authority_index=await self._do.resume(asked))

    @override
    async def ListHalts(
        self, request: emergency_service_pb2.ListHaltsRequest, context: Context
    ) -> emergency_service_pb2.ListHaltsResponse:
        halts = await self._do.list_halts(principal_from(request.acting_for, current_caller()))
        return emergency_service_pb2.ListHaltsResponse(halts=[halt_to(halt) for halt in halts])


def scope_from(message: emergency_service_pb2.HaltScope) -> HaltScope:
    """Return what is to be halted. Raises InvalidArgumentError when it is not said."""
    kind = message.WhichOneof("kind")
    if (kind == "everything" and message.everything) or (kind == "platform" and message.platform):
        return HaltScope(HaltKind[kind.upper()])
    if kind in _NAMED:
        return HaltScope(_NAMED[kind], getattr(message, kind))
    raise refused("scope", "REQUIRED", "Say what to halt: everything, a provider, an organization, an owner, an agent.")


def halt_to(halt: Halt) -> emergency_service_pb2.HaltRecord:
    """Return a halt as a message."""
    scope = emergency_service_pb2.HaltScope()
    field = _FIELDS[halt.scope.kind]
    setattr(scope, field, halt.scope.name or True)
    return emergency_service_pb2.HaltRecord(
        halt_id=halt.halt_id,
        scope=scope,
        reason=halt.reason,
        actor=halt.actor,
        by_operator=halt.is_by_operator,
        create_time=timestamp_to(halt.create_time),
        authority_index=halt.audit_index,
    )


def _asker_from(
    request: emergency_service_pb2.HaltRequest | emergency_service_pb2.ResumeRequest, caller: Caller
) -> Asker:
    return Asker(
        caller=caller.uri, actor=actor_from(request.actor), acting_for=principal_from(request.acting_for, caller)
    )


_NAMED = {
    "provider": HaltKind.PROVIDER,
    "organization_id": HaltKind.ORGANIZATION,
    "owner_id": HaltKind.OWNER,
    "agent_id": HaltKind.AGENT,
}
_FIELDS = {HaltKind.EVERYTHING: "everything", HaltKind.PLATFORM: "platform"} | {
    kind: field for field, kind in _NAMED.items()
}
