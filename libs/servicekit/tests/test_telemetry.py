"""Logging, metrics, traces and the admin port."""

import asyncio
import contextvars
import io
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from typing_extensions import override

from byok.keyvault.v1 import lease_service_pb2 as pb
from byok.keyvault.v1 import lease_service_pb2_grpc as rpc
from servicekit.admin import AdminServer
from servicekit.channels import open_channel
from servicekit.identity import AccessPolicy
from servicekit.metrics import Metrics
from servicekit.server import GrpcServer
from servicekit.settings import AdminSettings, ServerSettings, TelemetrySettings, TlsSettings
from servicekit.telemetry import BufferedWriter
from servicekit.tracing import Tracer, make_tracer, outgoing_metadata, span
from servicekit.wire import ErrorTable


class CountingStream(io.BytesIO):
    """Counts the writes it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    @override
    def write(self, data: Any) -> int:
        self.writes += 1
        return super().write(data)


async def test_lines_are_written_in_bulk_and_errors_at_once() -> None:
    """Lines of one burst are one write; an urgent one takes the others along, in order."""
    stream = CountingStream()
    writer = BufferedWriter(stream)
    for number in range(100):
        writer.write(b"%d\n" % number, is_urgent=False)
    assert stream.writes == 0
    writer.write(b"urgent\n", is_urgent=True)
    assert stream.writes == 1
    assert stream.getvalue().split()[-2:] == [b"99", b"urgent"]


async def test_lines_do_not_wait_for_more() -> None:
    """What was gathered is written within the interval, without another line."""
    written = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Announcing(CountingStream):
        @override
        def flush(self) -> None:
            loop.call_soon_threadsafe(written.set)

    writer = BufferedWriter(Announcing())
    writer.write(b"line\n", is_urgent=False)
    async with asyncio.timeout(5):
        await written.wait()


async def test_the_buffer_is_bounded() -> None:
    """A burst larger than the buffer is written early, not kept."""
    stream = CountingStream()
    writer = BufferedWriter(stream)
    writer.write(b"x" * 300_000, is_urgent=False)
    assert stream.writes == 1


def test_without_a_loop_lines_are_written_at_once() -> None:
    """A thread or a program without a loop loses nothing."""
    stream = CountingStream()
    writer = BufferedWriter(stream)
    thread = threading.Thread(target=writer.write, args=(b"line\n",), kwargs={"is_urgent": False})
    thread.start()
    thread.join()
    assert stream.getvalue() == b"line\n"


def test_a_log_whose_reader_has_gone_harms_nobody() -> None:
    """A closed stream must not take the service down."""
    stream = CountingStream()
    writer = BufferedWriter(stream)
    stream.close()
    writer.write(b"line\n", is_urgent=True)


def test_children_are_counted_by_value_and_bounded() -> None:
    """Each set of label values has its own count; beyond the bound they share one."""
    metrics = Metrics("test")
    counters = metrics.counters("things_total", "Things.", labels=("kind",))
    counters.at("a").inc()
    counters.at("a").inc()
    counters.at("b").inc()
    assert metrics.registry.get_sample_value("test_things_total", {"kind": "a"}) == 2
    for number in range(5_000):
        counters.at(f"k{number}").inc()
    assert metrics.registry.get_sample_value("test_things_total", {"kind": "k4999"}) is None
    assert metrics.registry.get_sample_value("test_things_total", {"kind": "other"}) is not None


async def test_the_admin_port_shows_health_readiness_and_metrics() -> None:
    """Probes and scrapers get what they need; readiness names what is missing."""
    metrics = Metrics("test")
    metrics.counter("things_total", "Things.").inc(3)
    checks = {"postgres": True, "redis": False}
    async with (
        AdminServer(AdminSettings(), readiness=lambda: checks, registry=metrics.registry) as admin,
        aiohttp.ClientSession(f"http://127.0.0.1:{admin.port}") as session,
    ):
        async with session.get("/healthz") as answer:
            assert answer.status == 200
        async with session.get("/readyz") as answer:
            assert (answer.status, await answer.json()) == (503, {"ready": False, "checks": checks})
        checks["redis"] = True
        async with session.get("/readyz") as answer:
            assert answer.status == 200
        async with session.get("/metrics") as answer:
            assert "test_things_total 3.0" in await answer.text()
        async with session.get("/settings") as answer:
            assert answer.status == 404
        async with session.post("/healthz", data=b"x") as answer:
            assert answer.status == 405


class Spans(SpanExporter):
    """Keeps the spans it is given."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS


def test_tracing_is_off_without_an_endpoint() -> None:
    """Off means off: no tracer, a span that does nothing, no metadata."""
    assert make_tracer("test", TelemetrySettings()) is None
    with span("anything"):
        assert outgoing_metadata() == ()


@pytest.mark.parametrize(
    ("traceparent", "ratio", "count"),
    [
        pytest.param(None, 1.0, 1, id="ours to sample"),
        pytest.param(None, 0.0, 0, id="ours, not sampled"),
        pytest.param("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", 0.0, 1, id="sampled by the caller"),
        pytest.param("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", 1.0, 0, id="not sampled by the caller"),
        pytest.param("nonsense", 1.0, 1, id="a malformed header counts as none"),
    ],
)
def test_sampling_is_decided_before_the_sdk(traceparent: str | None, ratio: float, count: int) -> None:
    """The caller's decision holds; without one the ratio decides."""
    spans = Spans()
    tracer = Tracer("test", spans, ratio=ratio)
    metadata = [("traceparent", traceparent)] if traceparent else []
    # A call has a context of its own, which ends with it.
    started = contextvars.copy_context().run(tracer.start_server_span, "/a.B/C", metadata)
    if started is not None:
        tracer.end_server_span(started, "OK")
    tracer.close()
    assert len(spans.spans) == count


async def test_a_trace_goes_through_server_and_client(serve: Callable[..., Awaitable[Any]]) -> None:
    """Server span, a span inside, and the outbound metadata belong to the caller's trace; no message is in them."""
    spans, seen = Spans(), list[tuple[tuple[str, str], ...]]()
    tracer = Tracer("test", spans, ratio=0.0)
    first = await serve()

    class Inside(rpc.LeaseServiceServicer):
        @override
        async def AcquireLeases(self, request: Any, context: Any) -> pb.AcquireLeasesResponse:
            with span("store.read", rows=1):
                seen.append(outgoing_metadata())
            raise RuntimeError(request.holder)

    files = first.files
    tls = TlsSettings(certificate_file=files.certificate, private_key_file=files.private_key, ca_file=files.ca)
    name = "byok.keyvault.v1.LeaseService"
    policy = AccessPolicy(
        roles={"router": ["spiffe://byok.local/ns/*/sa/router"]}, allow={f"{name}/AcquireLeases": ["router"]}
    )
    inside = Inside()  # type: ignore[abstract]  # the other calls are never let through
    async with (
        GrpcServer(
            ServerSettings(tls=tls),
            policy=policy,
            errors=ErrorTable("byok.test", {}),
            metrics=Metrics("test"),
            services=[(rpc.add_LeaseServiceServicer_to_server, inside, name)],
            tracer=tracer,
        ) as server,
        open_channel(f"localhost:{server.port}", first.ca.issue("router")) as channel,
    ):
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        with pytest.raises(grpc.aio.AioRpcError):
            await rpc.LeaseServiceStub(channel).AcquireLeases(
                pb.AcquireLeasesRequest(holder="sk-canary-0123456789"),
                metadata=(("traceparent", f"00-{trace}-00f067aa0ba902b7-01"),),
            )
    tracer.close()
    assert [each.name for each in spans.spans] == ["store.read", f"{name}/AcquireLeases"]
    assert {f"{each.context.trace_id:032x}" for each in spans.spans if each.context} == {trace}
    assert seen[0][0][1].startswith(f"00-{trace}-")
    assert "canary" not in json.dumps([each.to_json() for each in spans.spans])
