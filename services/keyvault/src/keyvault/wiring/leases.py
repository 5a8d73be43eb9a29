"""LeaseService, the hub of watchers, and what gathers lease calls into batches."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from byok.keyvault.v1 import lease_service_pb2, lease_service_pb2_grpc
from keyvault.adapters.postgres.key_health import PostgresKeyChecks
from keyvault.api.errors import ERRORS
from keyvault.api.lease_servicer import LeaseServicer, LeaseUseCases
from keyvault.domain.errors import AuditUnavailableError
from keyvault.domain.key_states import CoolDowns, HealthRules
from keyvault.domain.leases import DistinctKeyBound
from keyvault.usecases.acquire_leases import AcquireLeases, GrantedLease, LeaseCall, LeaseOutcome, NoLease
from keyvault.usecases.claim_key_checks import ClaimKeyChecks, ClaimRates
from keyvault.usecases.list_candidates import ListCandidates
from keyvault.usecases.report_outcomes import ReportOutcomes
from keyvault.usecases.report_validation import ReportValidation
from keyvault.usecases.watch_authority import WatchHub, WatchLimits
from keyvault.wiring.base import provider_keys, read_authority
from servicekit.calls import call_deadline
from servicekit.coalescer import Coalescer, CoalescerLimits
from servicekit.server import ServedService

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyvault.wiring.base import Base
    from servicekit.metrics import Metrics

# gRPC ends a connection at its age or up to a tenth earlier; every watch has a connection of its own.
_WATCH_AGE_SHARE: Final = 0.7
DESCRIPTOR: Final = lease_service_pb2.DESCRIPTOR.services_by_name["LeaseService"]


def serve_leases(
    base: Base, metrics: Metrics, *, hub: WatchHub, coalescer: Coalescer[LeaseCall, list[LeaseOutcome]]
) -> ServedService:
    """Return the service, ready to be served."""
    usecases = _usecases(base, metrics, hub=hub, coalescer=coalescer)
    return ServedService(
        lease_service_pb2_grpc.add_LeaseServiceServicer_to_server, LeaseServicer(usecases), DESCRIPTOR.full_name
    )


def make_hub(base: Base) -> WatchHub:
    """Return the hub of all watches of this process."""
    revocation = base.settings.revocation
    limits = WatchLimits(
        partition_bound=revocation.partition_bound,
        poll=revocation.poll,
        age_max=base.settings.server.connection_age_max * _WATCH_AGE_SHARE,
        handover=revocation.handover,
        queue_max=revocation.watch_queue_max,
        watchers_max=revocation.watchers_max,
    )
    return WatchHub(feed=base.feed, registry=base.registry, alarms=base.alarms, limits=limits, clock=base.clock)


def make_coalescer(base: Base) -> Coalescer[LeaseCall, list[LeaseOutcome]]:
    """Return what gathers lease calls into batches."""
    leases = base.settings.leases
    acquire = AcquireLeases(
        log=base.authority,
        read=read_authority(base),
        keyring=base.keyring,
        capabilities=base.capabilities,
        alarms=base.alarms,
        bound=DistinctKeyBound(leases.distinct_keys_per_minute_max),
        clock=base.clock,
        life=leases.life,
    )
    return Coalescer(
        acquire,
        limits=CoalescerLimits(
            batch_max=leases.calls_per_batch_max,
            queue_max=leases.calls_queued_max,
            in_flight_max=leases.batches_in_flight_max,
            linger_max=leases.linger_max,
        ),
        clock=base.clock,
        on_unclaimed=_wipe,
    )


def _counter(metrics: Metrics) -> Callable[[list[LeaseOutcome]], None]:
    items = metrics.counters("lease_items_total", "Items of AcquireLeases, by what became of them.", labels=("result",))

    def count(outcomes: list[LeaseOutcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, GrantedLease):
                items.at("GRANTED").inc()
            elif isinstance(outcome, NoLease):
                items.at(outcome.reason.cause.name).inc()
            else:
                items.at(ERRORS.reason(outcome)).inc()

    return count


def _in_time(
    coalescer: Coalescer[LeaseCall, list[LeaseOutcome]], at_most: timedelta
) -> Callable[[LeaseCall], Awaitable[list[LeaseOutcome]]]:
    """Return what gives a caller its own outcome, or tells it in its own time that the log did not answer.

    A batch serves many calls and knows the deadline of none.
    """

    async def acquire(call: LeaseCall) -> list[LeaseOutcome]:
        # Twice the time of a statement: a batch reads, and then appends.
        patience = timedelta(seconds=call_deadline(2 * at_most))
        try:
            return await coalescer.submit(call, patience=patience)
        except TimeoutError:
            raise AuditUnavailableError("the log did not answer in time, so nothing was leased; retry") from None

    return acquire


def _wipe(_call: LeaseCall, outcome: list[LeaseOutcome] | Exception) -> None:
    """Wipe the secrets of leases whose caller has gone."""
    if isinstance(outcome, list):
        for each in outcome:
            if isinstance(each, GrantedLease):
                each.secret.wipe()


def _claim(base: Base, acquire: Callable[[LeaseCall], Awaitable[list[LeaseOutcome]]]) -> ClaimKeyChecks:
    health = base.settings.health
    return ClaimKeyChecks(
        checks=PostgresKeyChecks(base.database, base.sealer),
        acquire=acquire,
        capabilities=base.capabilities,
        clock=base.clock,
        rates=ClaimRates(
            life=health.claim_life,
            per_minute_max=health.claims_per_minute_max,
            per_provider_and_minute_max=health.claims_per_provider_and_minute_max,
        ),
    )


def _usecases(
    base: Base, metrics: Metrics, *, hub: WatchHub, coalescer: Coalescer[LeaseCall, list[LeaseOutcome]]
) -> LeaseUseCases:
    keys = provider_keys(base)
    cool_downs = CoolDowns(
        rate_limited=base.settings.keys.rate_limited_rest, quota_exhausted=base.settings.keys.quota_exhausted_rest
    )
    acquire = _in_time(coalescer, base.settings.postgres.statement_timeout)
    return LeaseUseCases(
        acquire=acquire,
        count=_counter(metrics),
        claim=_claim(base, acquire),
        report_outcomes=ReportOutcomes(
            store=base.authority,
            verify=base.verify,
            write=keys.write,
            keyring=base.keyring,
            clock=base.clock,
            cool_downs=cool_downs,
            rules=HealthRules(rejection_grace=base.settings.keys.rejection_grace),
        ),
        report_validation=ReportValidation(
            store=base.authority, keys=keys, verify=base.verify, keyring=base.keyring, clock=base.clock
        ),
        list_candidates=ListCandidates(read=read_authority(base), capabilities=base.capabilities, clock=base.clock),
        hub=hub,
        keyring=base.keyring,
    )
