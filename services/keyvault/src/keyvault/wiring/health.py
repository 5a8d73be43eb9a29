"""Workers that keep an eye on keys: test calls that are due, expiry, erasures, decryptability, the self-audit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyvault.adapters.postgres.erasures import PostgresErasures
from keyvault.adapters.postgres.key_health import PostgresKeyChecks
from keyvault.adapters.postgres.row_history import PostgresRowHistory
from keyvault.adapters.postgres.secrets import PostgresSecrets
from keyvault.domain.key_checks import CheckRules
from keyvault.usecases.audit_rows import AuditRows
from keyvault.usecases.erase_owner import FinishErasures, RevokeErased
from keyvault.usecases.expire_keys import ExpireKeys
from keyvault.usecases.plan_key_checks import PlanKeyChecks
from keyvault.usecases.walk_secrets import WalkSecrets
from keyvault.wiring.base import SERVICE, provider_keys, report_corruption
from keyvault.workers.repeating import Repeating

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyvault.settings import HealthSettings
    from keyvault.wiring.base import Base
    from servicekit.metrics import Metrics


def make_workers(base: Base, metrics: Metrics) -> list[Repeating]:
    """Return every worker of this module, each to be run, with its metrics."""
    health = base.settings.health
    walk, audit = _walk_secrets(base), _audit_rows(base)
    _describe(metrics, walk, audit)

    def often(name: str, step: Callable[[], Awaitable[bool]]) -> Repeating:
        return Repeating(name, step, clock=base.clock, interval=health.interval, pause=health.interval / 10)

    def slowly(name: str, step: Callable[[], Awaitable[bool]]) -> Repeating:
        return Repeating(name, step, clock=base.clock, interval=health.walk_interval, pause=health.walk_pause)

    workers = [
        often("plan_key_checks", _plan_key_checks(base)),
        often("expire_keys", _expire_keys(base)),
        often(
            "finish_erasures",
            FinishErasures(
                PostgresErasures(base.database, base.sealer), revoke_erased(base), batch_max=health.batch_max
            ),
        ),
        slowly("walk_secrets", walk),
        slowly("audit_rows", audit),
    ]
    metrics.gauge(
        "worker_failures", "Steps of workers that failed.", lambda: sum(worker.failures for worker in workers)
    )
    return workers


def revoke_erased(base: Base) -> RevokeErased:
    """Return what revokes the keys that an erasure is about."""
    return RevokeErased(
        erasures=PostgresErasures(base.database, base.sealer),
        verify=base.verify,
        write=provider_keys(base).write,
        keyring=base.keyring,
        corruption=report_corruption(base),
        clock=base.clock,
    )


def _check_rules(health: HealthSettings) -> CheckRules:
    return CheckRules(working=health.check_interval, longest=health.check_interval, notices=health.expiry_notices)


def _plan_key_checks(base: Base) -> PlanKeyChecks:
    health = base.settings.health
    return PlanKeyChecks(
        checks=PostgresKeyChecks(base.database, base.sealer),
        verify=base.verify,
        corruption=report_corruption(base),
        rules=_check_rules(health),
        batch_max=health.batch_max,
    )


def _expire_keys(base: Base) -> ExpireKeys:
    health = base.settings.health
    return ExpireKeys(
        checks=PostgresKeyChecks(base.database, base.sealer),
        store=base.authority,
        verify=base.verify,
        write=provider_keys(base).write,
        keyring=base.keyring,
        corruption=report_corruption(base),
        clock=base.clock,
        rules=_check_rules(health),
        batch_max=health.batch_max,
        worker=SERVICE,
    )


def _walk_secrets(base: Base) -> WalkSecrets:
    return WalkSecrets(
        secrets=PostgresSecrets(base.database),
        verify=base.verify,
        keyring=base.keyring,
        corruption=report_corruption(base),
        batch_max=base.settings.health.walk_batch_max,
    )


def _audit_rows(base: Base) -> AuditRows:
    return AuditRows(
        PostgresRowHistory(base.database),
        corruption=report_corruption(base),
        batch_max=base.settings.health.walk_batch_max,
    )


def _describe(metrics: Metrics, walk: WalkSecrets, audit: AuditRows) -> None:
    metrics.gauge(
        "undecryptable_secrets",
        "Secrets that could not be opened, by the last whole pass over all wrapped DEKs.",
        lambda: walk.found.undecryptable,
    )
    metrics.gauge(
        "rolled_back_rows",
        "Authority rows that are not what the log wrote last, by the last whole pass of the self-audit.",
        lambda: len(audit.found),
    )
    metrics.gauge("secret_walks", "Whole passes over all wrapped DEKs.", lambda: walk.passes)
    metrics.gauge("self_audits", "Whole passes of the self-audit.", lambda: audit.passes)
    metrics.gauges(
        "secrets_by_kek_version",
        "Secrets that need a KEK version, by the last whole pass over all wrapped DEKs.",
        "kek_version",
        lambda: {str(version): count for version, count in walk.found.by_kek_version.items()},
    )
