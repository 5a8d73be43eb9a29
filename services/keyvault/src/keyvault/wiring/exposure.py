"""ExposureService and its use case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from byok.keyvault.v1 import exposure_service_pb2, exposure_service_pb2_grpc
from keyvault.adapters.postgres.exposure import PostgresExposure
from keyvault.api.exposure_servicer import ExposureServicer
from keyvault.usecases.list_exposed_keys import ListExposedKeys
from servicekit.server import ServedService

if TYPE_CHECKING:
    from keyvault.wiring.base import Base

DESCRIPTOR: Final = exposure_service_pb2.DESCRIPTOR.services_by_name["ExposureService"]


def serve_exposure(base: Base) -> ServedService:
    """Return the service, ready to be served."""
    usecase = ListExposedKeys(
        log=PostgresExposure(base.database, base.sealer), store=base.authority, verify=base.verify, clock=base.clock
    )
    return ServedService(
        exposure_service_pb2_grpc.add_ExposureServiceServicer_to_server, ExposureServicer(usecase), DESCRIPTOR.full_name
    )
