"""Prometheus metrics of one process, with children looked up once.

`prometheus_client` finds a labelled child under a lock and through text conversion at every `labels()`; that is more
than half of the cost of counting. The wrappers here keep the children in a plain dictionary. Label values must come
from bounded sets: methods, codes, reasons; never ids.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

Metric = TypeVar("Metric", bound=MetricWrapperBase)

# From half a millisecond, which is a warm batch item, to the longest deadline of a provider call.
SECONDS_BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip

# A label that could take any value would grow the registry without end; past this, values share one child.
_CHILDREN_MAX: Final = 2_000
_OTHER: Final = "other"


class Children(Generic[Metric]):
    """A labelled metric whose children are found by their values alone: `requests.at("Reserve", "OK").inc()`."""

    __slots__ = ("_children", "_metric", "_width")

    def __init__(self, metric: Metric, width: int) -> None:
        """Wrap `metric`, which has `width` labels."""
        self._metric = metric
        self._width = width
        self._children: dict[tuple[str, ...], Metric] = {}

    def at(self, *values: str) -> Metric:
        """Return the child with these label values."""
        child = self._children.get(values)
        if child is None:
            if len(self._children) >= _CHILDREN_MAX:
                return self._metric.labels(*[_OTHER] * self._width)
            child = self._children[values] = self._metric.labels(*values)
        return child


class Metrics:
    """Everything that one process counts, under the service's name: `<svc>_<noun>_<unit>`."""

    def __init__(self, service: str) -> None:
        """Make an empty registry for `service`, with what the process itself tells."""
        self.service = service
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def counter(self, name: str, documentation: str, *, labels: Sequence[str] = ()) -> Counter:
        """Return a new counter without labels; `counters` makes those with labels."""
        return Counter(name, documentation, list(labels), namespace=self.service, registry=self.registry)

    def counters(self, name: str, documentation: str, *, labels: Sequence[str]) -> Children[Counter]:
        """Return a new family of counters."""
        return Children(self.counter(name, documentation, labels=labels), len(labels))

    def histogram(
        self, name: str, documentation: str, *, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS_BUCKETS
    ) -> Histogram:
        """Return a new histogram without labels; `histograms` makes those with labels."""
        return Histogram(
            name, documentation, list(labels), namespace=self.service, registry=self.registry, buckets=tuple(buckets)
        )

    def histograms(
        self, name: str, documentation: str, *, labels: Sequence[str], buckets: Sequence[float] = SECONDS_BUCKETS
    ) -> Children[Histogram]:
        """Return a new family of histograms."""
        return Children(self.histogram(name, documentation, labels=labels, buckets=buckets), len(labels))

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> Gauge:
        """Return a new gauge that asks `read` when it is scraped, so that keeping it costs nothing."""
        gauge = Gauge(name, documentation, namespace=self.service, registry=self.registry)
        gauge.set_function(read)
        return gauge

    def gauges(self, name: str, documentation: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Register gauges with one label that ask `read` when they are scraped: which values there are may change."""
        self.registry.register(_Gauges(f"{self.service}_{name}", documentation, label, read))


class _Gauges(Collector):
    """A family of gauges that is read when it is scraped."""

    def __init__(self, name: str, documentation: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self._read = read

    @override
    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._documentation, labels=[self._label])
        for value, number in sorted(self._read().items()):
            family.add_metric([value], number)
        return [family]
