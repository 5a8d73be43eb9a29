"""What the guard around a call does: errors, deadlines, sizes, load, and what it counts and logs."""

import asyncio
import io
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo

from byok.keyvault.v1 import lease_service_pb2 as pb
from byok.router.v1.operation_service_pb2 import EvaluateGuardrailRequest, OperationContext
from servicekit.calls import InboundCall, call_deadline, current_call
from servicekit.dispatch import _request_id
from servicekit.errors import (
    DeadlineExceededError,
    DomainError,
    FieldViolation,
    InvalidArgumentError,
    OverloadedError,
    QuotaViolation,
)
from servicekit.telemetry import configure_logging
from servicekit.wire import ErrorTable, RemoteError, WireError, error_from_rpc

Serve = Callable[..., Awaitable[Any]]

_RPC = "byok.keyvault.v1.LeaseService/AcquireLeases"
_CANARY = "sk-ant-api03-canary-0123456789abcdefghij"


class KeyLostError(DomainError):
    """A key is not there."""


class CapReachedError(DomainError):
    """A cap is reached."""


_TABLE = ErrorTable(
    "byok.keyvault",
    {
        KeyLostError: WireError(grpc.StatusCode.NOT_FOUND, "PROVIDER_KEY_NOT_FOUND", ("provider_key_id",)),
        CapReachedError: WireError(grpc.StatusCode.RESOURCE_EXHAUSTED, "CAP_REACHED"),
    },
)


@pytest.fixture
def log() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Return a function that reads what was logged."""
    stream = io.BytesIO()
    writer = configure_logging("keyvault", level="debug", stream=stream, is_final=False)

    def read() -> list[dict[str, Any]]:
        writer.flush()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    yield read
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)


def _raising(error: Exception) -> Callable[[Any], Awaitable[pb.AcquireLeasesResponse]]:
    async def behave(_request: Any) -> pb.AcquireLeasesResponse:
        raise error

    return behave


async def _failure(served: Any, request: Any = None, *, timeout: float = 5) -> RemoteError:  # noqa: ASYNC109 - as gRPC has it
    stub = await served.stub()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.AcquireLeases(request or pb.AcquireLeasesRequest(), timeout=timeout)
    return error_from_rpc(failed.value)


async def test_a_domain_error_travels_with_reason_and_listed_facts(serve: Serve) -> None:
    """Exactly one ErrorInfo, with lowerCamel metadata of the listed facts only."""
    served = await serve(errors=_TABLE)
    served.servicer.behavior = _raising(KeyLostError("No such key.", provider_key_id="k1", tenant="hidden"))
    failure = await _failure(served)
    assert (failure.code, failure.message) == (grpc.StatusCode.NOT_FOUND, "No such key.")
    assert (failure.reason, failure.domain) == ("PROVIDER_KEY_NOT_FOUND", "byok.keyvault")
    assert failure.metadata == {"providerKeyId": "k1"}
    assert [detail.TypeName() for detail in failure.details] == [ErrorInfo.DESCRIPTOR.full_name]


async def test_violations_and_retry_and_quota_travel_as_details(serve: Serve) -> None:
    """BadRequest, RetryInfo and QuotaFailure are there where they are true, and only there."""
    served = await serve(errors=_TABLE)
    violation = FieldViolation(field="items", reason="EMPTY", description="must have 1 to 256 items")
    served.servicer.behavior = _raising(InvalidArgumentError(violations=[violation]))
    bad = (await _failure(served)).detail(BadRequest)
    assert bad is not None
    assert [(each.field, each.description) for each in bad.field_violations] == [("items", "must have 1 to 256 items")]

    served.servicer.behavior = _raising(OverloadedError("Later.", retry_after=timedelta(seconds=3)))
    overloaded = await _failure(served)
    assert overloaded.retry_after == timedelta(seconds=3)
    assert overloaded.reason == "OVERLOADED"

    cap = CapReachedError("The daily cap is reached.")
    cap.quota = [QuotaViolation(subject="agent:a1", description="0 of 1 USD left until 2026-01-01", quota_id="l1")]
    served.servicer.behavior = _raising(cap)
    reached = await _failure(served)
    assert reached.retry_after is None
    assert reached.detail(RetryInfo) is None
    quota = reached.detail(QuotaFailure)
    assert quota is not None
    assert quota.violations[0].subject == "agent:a1"


async def test_more_violations_than_a_trailer_holds_are_cut(serve: Serve) -> None:
    """Larger than gRPC lets metadata be, the error would reach its caller as another one; the first matter most."""
    served = await serve()
    violations = [
        FieldViolation(field=f"texts[{index}]", reason="TOO_LONG", description="is too long " * 30)
        for index in range(2_048)
    ]
    served.servicer.behavior = _raising(InvalidArgumentError(violations=violations))
    failure = await _failure(served)
    bad = failure.detail(BadRequest)
    assert failure.reason == "INVALID_ARGUMENT"
    assert bad is not None
    assert [each.field for each in bad.field_violations][:2] == ["texts[0]", "texts[1]"]
    assert len(bad.field_violations) < 50


async def test_an_unknown_error_is_opaque_and_has_a_request_id(serve: Serve, log: Callable[[], Any]) -> None:
    """What was not raised on purpose says nothing but an id, under which the log has the story, without the secret."""
    served = await serve()
    served.servicer.behavior = _raising(RuntimeError(f"provider said {_CANARY}"))
    failure = await _failure(served)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert _CANARY not in str(failure)
    # What is logged and counted comes after the answer; the drain comes after both.
    await served.server.drain()
    event = next(each for each in log() if each["event"] == "rpc.failed")
    assert event["request_id"] == failure.metadata["requestId"]
    assert "RuntimeError" in event["exception"]
    assert _CANARY not in json.dumps(event)


@pytest.mark.parametrize(
    ("request_message", "request_id"),
    [
        pytest.param(pb.ReportValidationRequest(request_id="r1"), "r1", id="in itself"),
        pytest.param(EvaluateGuardrailRequest(context=OperationContext(request_id="r2")), "r2", id="in its context"),
        pytest.param(pb.AcquireLeasesRequest(), "", id="none"),
        pytest.param(pb.ReportValidationRequest(request_id="r" * 1_000), "r" * 64, id="far too long"),
    ],
)
def test_a_request_is_known_by_the_id_it_carries(request_message: Message, request_id: str) -> None:
    """What a call is found by in the log is what its caller named it, cut to what an id can be."""
    assert _request_id(request_message) == request_id


async def test_a_servicer_knows_the_call_it_serves(serve: Serve) -> None:
    """Inside a call its method can be asked for; outside there is none."""
    served = await serve()
    seen: list[InboundCall | None] = []

    async def behave(_request: Any) -> pb.AcquireLeasesResponse:
        seen.append(current_call())
        return pb.AcquireLeasesResponse()

    served.servicer.behavior = behave
    await (await served.stub()).AcquireLeases(pb.AcquireLeasesRequest())
    assert [call.method for call in seen if call] == [f"/{_RPC}"]
    assert current_call() is None


async def test_the_deadline_is_shaved_so_that_our_error_arrives(serve: Serve) -> None:
    """A call that takes too long is answered with our typed error before the caller's own time-out."""
    served = await serve(deadline_margin=timedelta(milliseconds=500))

    async def hang(_request: Any) -> pb.AcquireLeasesResponse:
        await asyncio.Event().wait()
        raise AssertionError

    served.servicer.behavior = hang
    failure = await _failure(served, timeout=2.5)
    assert (failure.code, failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


async def test_a_call_without_deadline_gets_the_default_and_a_long_one_the_longest(serve: Serve) -> None:
    """Every unary call has a deadline within the server's bounds."""
    served = await serve(deadline_default=timedelta(seconds=7), deadline_max=timedelta(seconds=9))
    left: list[float] = []

    async def measure(_request: Any) -> pb.AcquireLeasesResponse:
        left.append(call_deadline(timedelta(hours=1)))
        return pb.AcquireLeasesResponse()

    served.servicer.behavior = measure
    # The bare channel, because the suite's own always sets a deadline.
    files = served.ca.issue("router")
    credentials = grpc.ssl_channel_credentials(
        files.ca.read_bytes(), files.private_key.read_bytes(), files.certificate.read_bytes()
    )
    async with grpc.aio.secure_channel(served.target, credentials) as channel:
        call: Any = channel.unary_unary(
            f"/{_RPC}", pb.AcquireLeasesRequest.SerializeToString, pb.AcquireLeasesResponse.FromString
        )
        await call(pb.AcquireLeasesRequest())
        await call(pb.AcquireLeasesRequest(), timeout=1000)
        await call(pb.AcquireLeasesRequest(), timeout=3)
    assert 6 < left[0] <= 7
    assert 8 < left[1] <= 9
    assert 2 < left[2] <= 3


async def test_an_outbound_call_with_no_time_left_is_not_made(serve: Serve) -> None:
    """When the inbound call's time is used up, no further call starts."""
    served = await serve()
    raised: list[Exception] = []

    async def measure(_request: Any) -> pb.AcquireLeasesResponse:
        try:
            call_deadline(timedelta(seconds=1), margin=timedelta(hours=1))
        except DeadlineExceededError as error:
            raised.append(error)
        return pb.AcquireLeasesResponse()

    served.servicer.behavior = measure
    await (await served.stub()).AcquireLeases(pb.AcquireLeasesRequest())
    assert len(raised) == 1
    assert call_deadline(timedelta(seconds=1)) == 1.0


async def test_a_caller_that_hangs_up_cancels_the_work(serve: Serve, log: Callable[[], Any]) -> None:
    """Cancelling a call cancels its servicer, and is counted as such."""
    served = await serve()
    cancelled = asyncio.Event()

    async def hang(_request: Any) -> pb.AcquireLeasesResponse:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    served.servicer.behavior = hang
    call = (await served.stub()).AcquireLeases(pb.AcquireLeasesRequest())
    waiting = asyncio.ensure_future(call)
    await served.servicer.entered.wait()
    waiting.cancel()
    await cancelled.wait()
    await served.server.drain()
    assert _calls(served, "CANCELLED") == 1


async def test_text_that_is_not_utf8_is_a_typed_error(serve: Serve) -> None:
    """A request that protobuf cannot read is the caller's mistake and says so, unlike gRPC's own answer."""
    served = await serve()
    call = (await served.channel()).unary_unary(f"/{_RPC}")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(b"\x0a\x02\xff\xfe")
    failure = error_from_rpc(failed.value)
    bad = failure.detail(BadRequest)
    assert failure.reason == "INVALID_ARGUMENT"
    assert bad is not None
    assert "UTF-8" in bad.field_violations[0].description


async def test_a_request_larger_than_its_limit_is_a_typed_error(serve: Serve) -> None:
    """Limits are per RPC; what is larger is refused by name, before it is parsed."""
    served = await serve(sizes={_RPC: 2000}, message_bytes_max=4000)
    stub = await served.stub()
    await stub.AcquireLeases(pb.AcquireLeasesRequest(holder="h" * 1900))
    failure = await _failure(served, pb.AcquireLeasesRequest(holder="h" * 3000))
    assert failure.reason == "INVALID_ARGUMENT"
    assert "2000 bytes" in failure.message


async def test_an_unreadable_request_of_a_stranger_is_refused_for_who_it_is(serve: Serve) -> None:
    """Access is checked before anything is said about the request."""
    served = await serve()
    call = (await served.channel(served.ca.issue("metering"))).unary_unary(f"/{_RPC}")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(b"\x0a\x02\xff\xfe")
    assert error_from_rpc(failed.value).reason == "CALLER_NOT_ALLOWED"


async def test_past_the_bound_of_calls_it_refuses(serve: Serve) -> None:
    """More calls at once than the bound get a typed error, and the others are not harmed."""
    served = await serve(concurrent_calls_max=1)
    release = asyncio.Event()

    async def hold(_request: Any) -> pb.AcquireLeasesResponse:
        await release.wait()
        return pb.AcquireLeasesResponse()

    served.servicer.behavior = hold
    stub = await served.stub()
    held = asyncio.ensure_future(stub.AcquireLeases(pb.AcquireLeasesRequest()))
    await served.servicer.entered.wait()
    # gRPC itself holds further calls of one connection back, so the second comes on another.
    failure = await _failure(served)
    assert failure.reason == "OVERLOADED"
    release.set()
    await held


async def test_calls_are_counted_by_method_and_code(serve: Serve) -> None:
    """Each call is in one bucket of method and code."""
    served = await serve()
    stub = await served.stub()
    for _ in range(3):
        await stub.AcquireLeases(pb.AcquireLeasesRequest())
    served.servicer.behavior = _raising(RuntimeError())
    await _failure(served)
    await served.server.drain()
    assert _calls(served, "OK") == 3
    assert _calls(served, "INTERNAL") == 1
    assert served.server.active_calls == 0


async def test_successes_are_logged_only_where_asked(serve: Serve, log: Callable[[], Any]) -> None:
    """A success leaves a log line where the operator wants one; a refusal always does."""
    served = await serve(log_successes=True)
    await (await served.stub()).AcquireLeases(pb.AcquireLeasesRequest())
    await served.server.drain()
    event = next(each for each in log() if each["event"] == "rpc.finished")
    assert event["code"] == "OK"
    assert event["method"] == f"/{_RPC}"
    assert event["caller"] == "spiffe://byok.local/ns/byok/sa/router"


async def test_a_stream_is_guarded_and_keeps_going(serve: Serve) -> None:
    """Streams pass the same gate, have no deadline of ours, and end when the caller ends them."""
    served = await serve()
    call = (await served.stub()).WatchAuthority()
    for _ in range(3):
        await call.write(pb.WatchAuthorityRequest())
        assert isinstance(await call.read(), pb.WatchAuthorityResponse)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    stranger = (await served.stub(served.ca.issue("metering"))).WatchAuthority()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stranger.read()
    assert error_from_rpc(refused.value).reason == "CALLER_NOT_ALLOWED"


async def test_an_unreadable_message_of_a_stream_is_a_typed_error(serve: Serve) -> None:
    """A message that cannot be read ends the stream with the same typed error as a unary call's."""
    served = await serve()
    call = (await served.channel()).stream_stream("/byok.keyvault.v1.LeaseService/WatchAuthority")()
    await call.write(b"\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert error_from_rpc(failed.value).reason == "INVALID_ARGUMENT"


def _calls(served: Any, code: str) -> float:
    labels = {"method": f"/{_RPC}", "code": code}
    return float(served.metrics.registry.get_sample_value("keyvault_grpc_server_seconds_count", labels) or 0)
