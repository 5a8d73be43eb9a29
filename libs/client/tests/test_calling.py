"""Calls are tried again only where that is safe, under one request id, within one deadline."""

from collections.abc import Awaitable
from datetime import timedelta

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.code_pb2 import RESOURCE_EXHAUSTED, UNAVAILABLE
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from byok.router.v1.operation_result_pb2 import DISPOSITION_HOLD, OperationFailure
from byok_client.calling import Calling, RetryBudget
from byok_client.errors import ByokError, Held
from servicekit.wire import RemoteError, remote_error, status_trailers
from testkit.fake_clock import FakeClock


def failure(code: grpc.StatusCode, status: Status | None = None) -> grpc.aio.AioRpcError:
    """Return what a stub raises."""
    trailers = grpc.aio.Metadata(*(status_trailers(status) if status else ()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details="said so")


class Server:
    """A method that fails as told, then answers; time passes with each call."""

    def __init__(self, clock: FakeClock, *failures: grpc.aio.AioRpcError, lasts: timedelta = timedelta(0)) -> None:
        """Fail with `failures`, one a call."""
        self._clock = clock
        self._failures = list(failures)
        self._lasts = lasts
        self.seen: list[StringValue] = []
        self.timeouts: list[float | None] = []

    def __call__(self, request: StringValue, /, *, timeout: float | None = None) -> Awaitable[StringValue]:
        """Answer the request."""
        return self._answer(request, timeout)

    async def _answer(self, request: StringValue, timeout: float | None) -> StringValue:  # noqa: ASYNC109 - as gRPC has it
        self.seen.append(request)
        self.timeouts.append(timeout)
        await self._clock.advance(self._lasts)
        if self._failures:
            raise self._failures.pop(0)
        return StringValue(value="done")


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock whose sleeps end when it is moved."""
    return FakeClock()


async def call(clock: FakeClock, server: Server, *, deadline: timedelta = timedelta(seconds=10)) -> StringValue:
    """Call the server with no wait between tries, so that the clock needs no moving."""
    calling = Calling(budget=RetryBudget(backoff_min=timedelta(0), backoff_max=timedelta(0)), clock=clock)
    return await calling(server, StringValue(value="once"), deadline=deadline)


# A server that stops says CANCELLED of the calls that it cuts off.
TRIED_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@pytest.mark.parametrize("code", TRIED_AGAIN)
async def test_unavailable_is_tried_again_with_the_same_request(clock: FakeClock, code: grpc.StatusCode) -> None:
    """The service says that nothing was done, or is going away."""
    server = Server(clock, failure(code), failure(code))
    assert (await call(clock, server)).value == "done"
    assert len(server.seen) == 3
    assert all(each is server.seen[0] for each in server.seen)


@pytest.mark.parametrize("code", [each for each in grpc.StatusCode if each not in TRIED_AGAIN])
async def test_nothing_else_is_tried_again(clock: FakeClock, code: grpc.StatusCode) -> None:
    """A cap, a time-out or a fault may have been paid for, or will fail again."""
    server = Server(clock, failure(code))
    with pytest.raises(RemoteError) as caught:
        await call(clock, server)
    assert caught.value.code is code
    assert len(server.seen) == 1


async def test_tries_are_bounded(clock: FakeClock) -> None:
    """A service that is away for long is not hammered."""
    server = Server(clock, *[failure(grpc.StatusCode.UNAVAILABLE)] * 9)
    with pytest.raises(RemoteError):
        await call(clock, server)
    assert len(server.seen) == RetryBudget().attempts_max


async def test_all_tries_share_one_deadline(clock: FakeClock) -> None:
    """What the first try used up is not given to the second."""
    server = Server(clock, *[failure(grpc.StatusCode.UNAVAILABLE)] * 9, lasts=timedelta(seconds=4))
    with pytest.raises(RemoteError):
        await call(clock, server)
    assert server.timeouts == pytest.approx([10, 6, 2])


async def test_a_wait_longer_than_the_deadline_is_not_begun(clock: FakeClock) -> None:
    """The caller learns the reason instead of a time-out of its own."""
    status = Status(code=UNAVAILABLE)
    retry = RetryInfo()
    retry.retry_delay.FromTimedelta(timedelta(seconds=30))
    status.details.add().Pack(retry)
    server = Server(clock, failure(grpc.StatusCode.UNAVAILABLE, status))
    with pytest.raises(RemoteError) as caught:
        await call(clock, server)
    assert caught.value.retry_after == timedelta(seconds=30)
    assert len(server.seen) == 1


def test_a_broken_channel_is_a_hold_that_may_be_retried() -> None:
    """Where nothing typed came back, the content is held all the same."""
    held = Held(RemoteError("connection refused", code=grpc.StatusCode.UNAVAILABLE))
    assert held.failure is None
    assert held.is_retryable


def test_routers_own_word_on_retrying_is_taken() -> None:
    """The same code may mean either."""
    status = Status(code=RESOURCE_EXHAUSTED)
    status.details.add().Pack(ErrorInfo(reason="CAP_REACHED", domain="byok.router"))
    status.details.add().Pack(OperationFailure(disposition=DISPOSITION_HOLD, retryable=False))
    held = Held(remote_error(status))
    assert held.reason == "CAP_REACHED"
    assert not held.is_retryable
    assert held.failure is not None


def test_a_reason_of_a_newer_release_is_not_retried() -> None:
    """What is not understood is not repeated."""
    status = Status(code=RESOURCE_EXHAUSTED)
    status.details.add().Pack(ErrorInfo(reason="SOMETHING_NEW", domain="byok.metering"))
    assert not ByokError(remote_error(status)).is_retryable
