"""EmergencyService and its use cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from byok.keyvault.v1 import emergency_service_pb2, emergency_service_pb2_grpc
from keyvault.api.emergency_servicer import EmergencyServicer, EmergencyUseCases
from keyvault.usecases.agent_bindings import AgentBindings
from keyvault.usecases.change_halts import HaltChanges, HaltLeases, ResumeLeases
from keyvault.usecases.list_halts import ListHalts
from keyvault.usecases.write_authority import WindowLimits, WriteHalts
from keyvault.wiring.base import await_watchers
from servicekit.server import ServedService

if TYPE_CHECKING:
    from keyvault.wiring.base import Base

DESCRIPTOR: Final = emergency_service_pb2.DESCRIPTOR.services_by_name["EmergencyService"]


def serve_emergency(base: Base) -> ServedService:
    """Return the service, ready to be served."""
    changes = HaltChanges(
        base.shares_and_halts,
        halts=base.halts,
        verify=base.verify,
        write=WriteHalts(base.shares_and_halts, base.keyring, WindowLimits()),
        keyring=base.keyring,
    )
    usecases = EmergencyUseCases(
        halt=HaltLeases(
            changes=changes,
            agents=AgentBindings(base.authority, base.verify),
            await_watchers=await_watchers(base),
            clock=base.clock,
        ),
        resume=ResumeLeases(changes=changes, clock=base.clock),
        list_halts=ListHalts(base.halts),
    )
    return ServedService(
        emergency_service_pb2_grpc.add_EmergencyServiceServicer_to_server,
        EmergencyServicer(usecases),
        DESCRIPTOR.full_name,
    )
