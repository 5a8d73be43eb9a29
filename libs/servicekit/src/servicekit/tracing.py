"""Traces by OpenTelemetry, decided before its SDK is asked, so that what is not sampled costs a comparison.

A call is traced when its `traceparent` says so, or, when it has none, by `trace_ratio`. Only then is there a current
span, and only under a current span do `span` and `outgoing_metadata` do anything. Spans carry names, codes and ids;
never messages, and of an exception only its type.
"""

import contextlib
import contextvars
import random
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from servicekit.settings import TelemetrySettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = 0x01
_NOTHING: Final = contextlib.nullcontext()

_Metadata = Sequence[tuple[str, str | bytes]]


class Tracer:
    """Starts spans for sampled calls. Exists only where an operator has named an endpoint."""

    def __init__(self, service: str, exporter: "SpanExporter", *, ratio: float) -> None:
        """Make a tracer that sends spans through `exporter`."""
        # Imported here, because without tracing a process need not carry the SDK's 10 MB.
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 (as said)
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 (as said)
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 (as said)

        self._ratio = ratio
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("servicekit")

    def start_server_span(self, method: str, metadata: _Metadata | None) -> "Span | None":
        """Start the span of an inbound call and make it current, or return None when the call is not sampled."""
        from opentelemetry import trace  # noqa: PLC0415 (as above)

        parent = _parent(metadata or ())
        if parent is None:
            if random.random() >= self._ratio:  # noqa: S311 (a sampling decision, nothing to guess)
                return None
            context = None
        elif not parent[2] & _SAMPLED:
            return None
        else:
            remote = trace.SpanContext(parent[0], parent[1], is_remote=True, trace_flags=trace.TraceFlags(parent[2]))
            context = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        service, _, name = method.lstrip("/").partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        span = self._tracer.start_span(
            f"{service}/{name}", context=context, kind=trace.SpanKind.SERVER, attributes=attributes
        )
        _CURRENT.set((self, span))
        return span

    @contextlib.contextmanager
    def child(self, name: str, parent: "Span", attributes: dict[str, str | int | float]) -> Iterator[None]:
        """Run a block as a span under `parent`."""
        from opentelemetry import trace  # noqa: PLC0415 (as above)

        span = self._tracer.start_span(name, context=trace.set_span_in_context(parent), attributes=attributes)
        token = _CURRENT.set((self, span))
        try:
            yield
        except BaseException as error:
            span.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            _CURRENT.reset(token)
            span.end()

    def end_server_span(self, span: "Span", code: str) -> None:
        """End the span of a call that was answered with `code`."""
        span.set_attribute("rpc.grpc.status_code", code)
        span.end()

    def close(self) -> None:
        """Send what has gathered, and stop."""
        self._provider.shutdown()


_CURRENT: Final[contextvars.ContextVar["tuple[Tracer, Span] | None"]] = contextvars.ContextVar(
    "servicekit_span", default=None
)


def make_tracer(service: str, settings: TelemetrySettings) -> Tracer | None:
    """Return the tracer that the settings ask for, or None when tracing is off."""
    if settings.otlp_endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 (as above)

    exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint)
    return Tracer(service, exporter, ratio=settings.trace_ratio)


def span(name: str, **attributes: str | int) -> "contextlib.AbstractContextManager[None]":
    """Run a block as a span under the current one; without one, just run it."""
    current = _CURRENT.get()
    if current is None:
        return _NOTHING
    tracer, parent = current
    return tracer.child(name, parent, dict(attributes))


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """Return the metadata that ties an outbound call to the current span; empty without one."""
    current = _CURRENT.get()
    if current is None:
        return ()
    context = current[1].get_span_context()
    return (("traceparent", f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"),)


def _parent(metadata: _Metadata) -> tuple[int, int, int] | None:
    for key, value in metadata:
        if key == "traceparent" and isinstance(value, str):
            found = _TRACEPARENT.fullmatch(value)
            return None if found is None else (int(found[1], 16), int(found[2], 16), int(found[3], 16))
    return None
