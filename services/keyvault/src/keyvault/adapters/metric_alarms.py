"""Alarms as log events and counters, which the operator's rules look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from typing_extensions import override

from keyvault.ports import Alarms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servicekit.metrics import Metrics

_log = structlog.get_logger("keyvault.alarms")


class MetricAlarms(Alarms):
    """Counts and logs what an operator must hear of."""

    def __init__(self, metrics: Metrics) -> None:
        """Count in `metrics`."""
        self._corruption = metrics.counters(
            "corruption_found_total", "Stored bytes that failed authentication, by error.", labels=("error",)
        )
        self._watch = metrics.counter(
            "watch_failures_total", "Times that changes of authority could not be read any more."
        )
        self._bound = metrics.counter(
            "lease_bound_reached_total", "Leases refused for too many distinct keys a minute."
        )

    @override
    def corruption_found(self, row_id: str, what: str) -> None:
        self._corruption.at(what).inc()
        _log.error("custody.corruption_found", row_id=row_id, error=what)

    @override
    def watch_failing(self, what: str, facts: Mapping[str, str | int]) -> None:
        self._watch.inc()
        _log.error("watch.round_failed", error=what, **facts)

    @override
    def lease_bound_reached(self, caller: str) -> None:
        self._bound.inc()
        _log.error("lease.bound_reached", caller=caller)
