"""KeyringService, its use cases, and the heartbeat of this replica."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Final

from byok.keyvault.v1 import keyring_service_pb2, keyring_service_pb2_grpc
from keyvault.adapters.postgres.keyring_administration import PostgresKeyringAdministration
from keyvault.api.keyring_servicer import KeyringServicer, KeyringUseCases
from keyvault.usecases.change_keyring import ChangeKeyring
from keyvault.usecases.list_keyring import ListKeyring
from keyvault.wiring.rewrap import follow_rewrap
from keyvault.workers.replica_heartbeat import ReplicaHeartbeat
from servicekit.ids import new_uuid7
from servicekit.server import ServedService

if TYPE_CHECKING:
    from keyvault.wiring.base import Base

DESCRIPTOR: Final = keyring_service_pb2.DESCRIPTOR.services_by_name["KeyringService"]


def serve_keyring(base: Base) -> ServedService:
    """Return the service, ready to be served."""
    live = base.settings.keyring.replica_bound
    store = _store(base)
    usecases = KeyringUseCases(
        list_keyring=ListKeyring(store=store, custody=base.keyring, live=live),
        change=ChangeKeyring(store=store, custody=base.keyring, clock=base.clock, live=live),
        follow_rewrap=follow_rewrap(base),
    )
    return ServedService(
        keyring_service_pb2_grpc.add_KeyringServiceServicer_to_server, KeyringServicer(usecases), DESCRIPTOR.full_name
    )


def make_heartbeat(base: Base) -> ReplicaHeartbeat:
    """Return what says that this replica is alive."""
    settings = base.settings.keyring
    return ReplicaHeartbeat(
        store=_store(base),
        custody=base.keyring,
        clock=base.clock,
        replica_id=new_uuid7(base.clock.now()),
        release=metadata.version("byok-keyvault"),
        interval=settings.heartbeat,
        live=settings.replica_bound,
    )


def _store(base: Base) -> PostgresKeyringAdministration:
    return PostgresKeyringAdministration(base.database, base.sealer, base.authority)
