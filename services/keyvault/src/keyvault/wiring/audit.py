"""AuditService, and the integration of the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from byok.keyvault.v1 import audit_service_pb2, audit_service_pb2_grpc
from keyvault.adapters.postgres.row_history import PostgresRowHistory
from keyvault.adapters.postgres.tree import PostgresTree
from keyvault.adapters.postgres.tree_records import PostgresTreeRecords
from keyvault.api.audit_servicer import AuditServicer, AuditUseCases
from keyvault.usecases.check_leaves import CheckLeaves
from keyvault.usecases.export_entries import ExportEntries
from keyvault.usecases.integrate_log import IntegrateLog
from keyvault.usecases.list_entries import ListEntries
from keyvault.usecases.prove_log import ProveLog
from keyvault.usecases.prove_sizes import ProveSizes
from keyvault.usecases.read_feed import ReadFeed
from keyvault.usecases.verify_authority import VerifyAuthority
from keyvault.usecases.verify_log import VerifyLog
from keyvault.wiring.base import provider_keys, report_corruption
from keyvault.workers.integrating import Integrating
from servicekit.server import ServedService

if TYPE_CHECKING:
    from keyvault.wiring.base import Base
    from servicekit.metrics import Metrics

DESCRIPTOR: Final = audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"]


@dataclass(frozen=True, slots=True)
class Tree:
    """The tree of this process, shared by the service and the worker."""

    store: PostgresTree
    prove: ProveLog
    integrate: IntegrateLog


def make_tree(base: Base, metrics: Metrics) -> Tree:
    """Return the tree over the log, and tell of it in `metrics`."""
    store = PostgresTree(base.database)
    prove = ProveLog(store)
    integrate = IntegrateLog(
        store,
        check=CheckLeaves(base.sealer, base.keyring, base.settings.audit.accepted),
        prove=prove,
        keyring=base.keyring,
        report=report_corruption(base),
    )
    metrics.gauge("audit_checkpoint_size", "Entries that the newest checkpoint covers.", lambda: integrate.newest_size)
    metrics.gauge("audit_entries_uncovered", "Entries that wait for a checkpoint.", lambda: integrate.uncovered)
    metrics.gauge(
        "audit_log_corrupt", "1 while an entry keeps the log from being signed.", lambda: int(integrate.is_corrupt)
    )
    return Tree(store, prove, integrate)


def integrating(base: Base, tree: Tree) -> Integrating:
    """Return what integrates the log beside the calls."""
    audit = base.settings.audit
    return Integrating(
        tree.integrate, tree.store, clock=base.clock, interval=audit.checkpoint_interval, kept=audit.checkpoints_kept
    )


def verify_log(base: Base, tree: Tree) -> VerifyLog:
    """Return the full verification."""
    return VerifyLog(
        tree.store,
        PostgresTreeRecords(base.database),
        sealer=base.sealer,
        keyring=base.keyring,
        authority=VerifyAuthority(
            PostgresRowHistory(base.database),
            keys=base.authority,
            bindings=base.authority,
            shares=base.shares_and_halts,
            halts=base.shares_and_halts,
            keyring=base.keyring,
        ),
    )


def serve_audit(base: Base, tree: Tree) -> ServedService:
    """Return the service, ready to be served."""
    audit = base.settings.audit
    usecases = AuditUseCases(
        list_entries=ListEntries(tree.store, keys=provider_keys(base), integrate=tree.integrate, prove=tree.prove),
        read_feed=ReadFeed(
            tree.store,
            integrate=tree.integrate,
            prove=tree.prove,
            on_change=base.feed.on_change,
            clock=base.clock,
            wait=audit.feed_wait,
            poll=audit.feed_poll,
        ),
        prove=ProveSizes(tree.store, integrate=tree.integrate, prove=tree.prove, keyring=base.keyring),
        verify=verify_log(base, tree),
        export=ExportEntries(tree.store, integrate=tree.integrate),
    )
    return ServedService(
        audit_service_pb2_grpc.add_AuditServiceServicer_to_server, AuditServicer(usecases), DESCRIPTOR.full_name
    )
