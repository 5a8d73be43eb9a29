"""Everything that happens around one RPC, in one place instead of a stack of interceptors, which cost 10 to 15 µs each.

    deserialize (size, UTF-8) ─▶ identity ─▶ access ─▶ load ─▶ deadline ─▶ the servicer ─▶ answer ─▶ log, count, trace

What can wait comes after the answer is on its way. Whatever the servicer raises becomes the one status that the
service's error table gives it.
"""

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError

from servicekit.calls import CURRENT_CALL, InboundCall
from servicekit.clock import SystemClock
from servicekit.errors import (
    CallerNotAllowedError,
    DeadlineExceededError,
    DomainError,
    FieldViolation,
    InvalidArgumentError,
    OverloadedError,
    UnavailableError,
)
from servicekit.identity import CURRENT_CALLER, AccessPolicy, Caller, Role
from servicekit.ids import new_uuid7
from servicekit.metrics import Metrics
from servicekit.refusals import RefusalReporter
from servicekit.tracing import Tracer
from servicekit.wire import ErrorTable, grpc_code, status_trailers

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    # Generic in the stubs only.
    _Context = grpc.aio.ServicerContext[Any, Any]
    _Handler = grpc.RpcMethodHandler[Any, Any]

_log = structlog.get_logger("servicekit.dispatch")

_Behavior = Callable[[Any, Any], Any]

# The margin never takes more than this share of a short deadline.
_MARGIN_SHARE_MAX: Final = 0.1
_REQUEST_ID_SHOWN_MAX: Final = 64
_CLOCK: Final = SystemClock()
_OK: Final = "OK"
_CANCELLED: Final = "CANCELLED"
_INTERNAL: Final = "INTERNAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """Bounds of the calls of one server; times in seconds."""

    deadline_default: float
    deadline_max: float
    deadline_margin: float
    concurrent_calls_max: int
    log_successes: bool


class Unreadable:
    """Stands for a request that could not be read; gRPC itself would answer such a one without saying why."""

    __slots__ = ("error",)

    def __init__(self, error: DomainError) -> None:
        """Keep what the caller is told."""
        self.error = error


class Dispatcher:
    """Wraps the behaviours of servicers. Belongs to one server and one event loop."""

    def __init__(
        self,
        *,
        policy: AccessPolicy,
        errors: ErrorTable,
        limits: DispatchLimits,
        metrics: Metrics,
        refusals: RefusalReporter | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Make a dispatcher of one server, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._policy = policy
        self._errors = errors
        self._limits = limits
        self._refusals = refusals
        self._tracer = tracer
        self._seconds = metrics.histograms(
            "grpc_server_seconds", "Time to answer a call, by method and code.", labels=("method", "code")
        )
        self._refused = metrics.counters(
            "grpc_refusals_total", "Calls refused by the access policy, by method.", labels=("method",)
        )
        self._streams: dict[asyncio.Task[Any], _Stream] = {}
        self.active_calls = 0
        self.is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active_streams(self) -> int:
        """How many streaming calls are open."""
        return len(self._streams)

    async def wait_idle(self) -> None:
        """Wait until no unary call is being served."""
        await self._idle.wait()

    def end_streams(self) -> None:
        """End the open streams, telling their callers to come back at another replica."""
        self.is_draining = True
        for task, stream in list(self._streams.items()):
            if stream.is_writing:
                stream.must_end = True
            else:
                task.cancel()

    def wrap(self, method: str, handler: "_Handler", *, bytes_max: int, any_role: bool = False) -> "_Handler":
        """Return `handler` guarded.

        Args:
            method: `/package.Service/Method`.
            handler: What the generated code made of the servicer's method.
            bytes_max: The largest request taken.
            any_role: Whether every caller with a role may call it, listed or not (health, reflection).
        """
        takes_stream, gives_stream = bool(handler.request_streaming), bool(handler.response_streaming)
        gate = _Gate(
            method=method,
            roles=self._policy.allowed_roles(method),
            any_role=any_role,
            is_unary=not (takes_stream or gives_stream),
        )
        read = _reader(handler.request_deserializer, bytes_max, is_stream=takes_stream)
        write = handler.response_serializer
        if takes_stream and gives_stream:
            behavior = self._guard(gate, self._pumped(handler.stream_stream), is_stream=True)
            return grpc.stream_stream_rpc_method_handler(behavior, read, write)
        if takes_stream:
            behavior = self._guard(gate, handler.stream_unary, is_stream=True)
            return grpc.stream_unary_rpc_method_handler(behavior, read, write)
        if gives_stream:
            behavior = self._guard(gate, self._pumped(handler.unary_stream), is_stream=True)
            return grpc.unary_stream_rpc_method_handler(behavior, read, write)
        behavior = self._guard(gate, handler.unary_unary, is_stream=False)
        return grpc.unary_unary_rpc_method_handler(behavior, read, write)

    def _guard(self, gate: "_Gate", behavior: Any, *, is_stream: bool) -> _Behavior:
        async def serve(request: Any, context: "_Context") -> Any:
            record = _Record(gate.method)
            leave = self._enter(is_stream=is_stream)
            try:
                record.limit = self._limit(self._admit(gate, request, context, record))
                response = await behavior(request, context)
            except asyncio.CancelledError:
                error = self._reason_of_cancellation(record, is_stream=is_stream)
                if error is None:
                    record.code = _CANCELLED
                    raise
                await self._refuse(error, context, record)
            except grpc.aio.AbortError:
                record.code = context.code().name
                raise
            except Exception as error:  # noqa: BLE001 (the one place where every error becomes an answer)
                await self._refuse(error, context, record)
            else:
                # It runs once the answer is with gRPC's core, which takes it before the loop turns.
                self._loop.call_soon(self._conclude, record)
                return response
            finally:
                leave()
                self._part(record)

        return serve

    def _part(self, record: "_Record") -> None:
        if record.limit is not None:
            record.limit.lift()
        if record.code != _OK:
            self._conclude(record)

    def _limit(self, deadline: float | None) -> "_Limit | None":
        return None if deadline is None else _Limit(self._loop, deadline, _current_task(self._loop))

    def _reason_of_cancellation(self, record: "_Record", *, is_stream: bool) -> DomainError | None:
        """Return what to answer to a call that we ended ourselves, or None when its caller hung up."""
        if record.limit is not None and record.limit.is_reached():
            return DeadlineExceededError("The call's deadline ended first. Give it more time, or less to do.")
        return _stopping() if is_stream and self.is_draining else None

    def _enter(self, *, is_stream: bool) -> Callable[[], object]:
        if is_stream:
            task = _current_task(self._loop)
            self._streams[task] = _Stream()
            return lambda: self._streams.pop(task, None)
        self.active_calls += 1
        self._idle.clear()
        return self._leave

    def _pumped(self, behavior: Any) -> _Behavior:
        """Return a streaming behaviour as a coroutine, so that it ends inside the guard and not when collected."""
        if not inspect.isasyncgenfunction(behavior):
            coroutine: _Behavior = behavior
            return coroutine

        async def pump(request: Any, context: "_Context") -> None:
            stream = self._streams[_current_task(self._loop)]
            async with contextlib.aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    # Cancelled half-way, a write would leave gRPC unable to send the status, and the caller waiting.
                    stream.is_writing = True
                    await context.write(response)
                    stream.is_writing = False
                    if stream.must_end:
                        raise _stopping()

        return pump

    def _leave(self) -> None:
        self.active_calls -= 1
        if not self.active_calls:
            self._idle.set()

    def _admit(self, gate: "_Gate", request: Any, context: "_Context", record: "_Record") -> float | None:
        """Check that this call may be served, make its context, and return when it must have ended."""
        caller = self._policy.identify(*_peer(context))
        record.caller = caller.uri
        if not gate.admits(caller):
            raise CallerNotAllowedError("This caller is not listed for this call.", caller=caller.uri)
        if isinstance(request, Unreadable):
            raise request.error
        if self.active_calls + len(self._streams) > self._limits.concurrent_calls_max:
            raise OverloadedError("This replica serves as many calls as it may. Retry later.")
        is_unary = gate.is_unary
        deadline = self._deadline(context.time_remaining(), is_unary=is_unary)
        request_id = _request_id(request) if is_unary else ""
        record.request_id = request_id
        CURRENT_CALLER.set(caller)
        CURRENT_CALL.set(InboundCall(gate.method, request_id, deadline))
        if self._tracer is not None:
            record.span = self._tracer.start_server_span(gate.method, _metadata(context))
        return deadline

    def _deadline(self, remaining: float | None, *, is_unary: bool) -> float | None:
        limits = self._limits
        if remaining is None:
            if not is_unary:
                return None
            remaining = limits.deadline_default
        elif is_unary:
            remaining = min(remaining, limits.deadline_max)
        left = remaining - min(limits.deadline_margin, remaining * _MARGIN_SHARE_MAX)
        return self._loop.time() + left

    async def _refuse(self, error: Exception, context: "_Context", record: "_Record") -> NoReturn:
        if not record.request_id:
            # The caller reports this id, and the log has it too.
            record.request_id = new_uuid7(_CLOCK.now())
        status = self._errors.status(error, request_id=record.request_id)
        record.code = grpc_code(status).name
        record.error = error
        if isinstance(error, CallerNotAllowedError):
            self._refused.at(record.method).inc()
            record.caller = record.caller or str(error.facts.get("caller", ""))
            if self._refusals is not None:
                self._refusals.record(record.caller, record.method)
        await context.abort(grpc_code(status), status.message, status_trailers(status))

    def _conclude(self, record: "_Record") -> None:
        """Count and log a call that was answered."""
        seconds = time.perf_counter() - record.started
        self._seconds.at(record.method, record.code).observe(seconds)
        if record.span is not None and self._tracer is not None:
            self._tracer.end_server_span(record.span, record.code)
        if record.code == _OK and not self._limits.log_successes:
            return
        facts = {
            "method": record.method,
            "request_id": record.request_id,
            "code": record.code,
            "caller": record.caller,
            "duration_ms": round(seconds * 1000, 3),
        }
        # The record is in the error's traceback: kept there, the two would live until a collection.
        error, record.error = record.error, None
        if error is None:
            _log.info("rpc.finished", **facts)
        elif isinstance(error, DomainError) and record.code != _INTERNAL:
            _log.info("rpc.refused", reason=self._errors.reason(error), **facts)
        else:
            _log.error("rpc.failed", exc_info=error, **facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gate:
    """What the policy says of one method."""

    method: str
    roles: frozenset[Role]
    any_role: bool
    is_unary: bool

    def admits(self, caller: Caller) -> bool:
        return self.any_role or not self.roles.isdisjoint(caller.roles)


class _Limit:
    """Cancels the task of a call at its deadline. `asyncio.timeout` does the same for 4 µs more."""

    __slots__ = ("_has_passed", "_task", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, deadline: float, task: asyncio.Task[Any]) -> None:
        self._task = task
        self._has_passed = False
        self._timer = loop.call_at(deadline, self._pass)

    def _pass(self) -> None:
        self._has_passed = True
        self._task.cancel()

    def is_reached(self) -> bool:
        """Tell, once the task was cancelled, whether it was for this and nothing else."""
        return self._has_passed and self._task.uncancel() == 0

    def lift(self) -> None:
        self._timer.cancel()


class _Record:
    """What is known of one call, for counting and logging it afterwards."""

    __slots__ = ("caller", "code", "error", "limit", "method", "request_id", "span", "started")

    def __init__(self, method: str) -> None:
        self.method = method
        self.started = time.perf_counter()
        self.caller = ""
        self.code = _OK
        self.request_id = ""
        self.limit: _Limit | None = None
        self.error: Exception | None = None
        self.span: Span | None = None


class _Stream:
    """Where an open stream stands, for ending it at a moment when it can be ended."""

    __slots__ = ("is_writing", "must_end")

    def __init__(self) -> None:
        self.is_writing = False
        self.must_end = False


def _stopping() -> UnavailableError:
    return UnavailableError("This replica is stopping. Come back.")


def _current_task(loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any]:
    task = asyncio.current_task(loop)
    if task is None:
        raise RuntimeError("a call is served outside of a task")
    return task


def _request_id(request: Any) -> str:
    """Return the id that a request carries, in itself or in its context; empty when it has none."""
    found = getattr(request, "request_id", None)
    if found is None:
        found = getattr(getattr(request, "context", None), "request_id", "")
    return str(found)[:_REQUEST_ID_SHOWN_MAX]


def _peer(context: "_Context") -> tuple[Sequence[bytes], bytes]:
    """Return the URIs and the certificate of whoever calls."""
    peer = context.auth_context()
    certificates = list(peer.get("x509_pem_cert", ()))
    return list(peer.get("peer_uri", ())), certificates[0] if len(certificates) == 1 else b""


def _metadata(context: "_Context") -> Sequence[tuple[str, str | bytes]]:
    return [(key, value) for key, value in context.invocation_metadata() or ()]


def _reader(read: Callable[[bytes], Any] | None, bytes_max: int, *, is_stream: bool) -> Callable[[bytes], Any]:
    """Return a deserializer that says what is wrong with a request: by a marker, or for streams by raising."""

    def read_checked(data: bytes) -> Any:
        if len(data) <= bytes_max:
            try:
                return read(data) if read is not None else data
            except DecodeError:
                error = _unreadable("MALFORMED", "is no valid protobuf; text must be UTF-8")
        else:
            error = _unreadable("TOO_LARGE", f"is larger than {bytes_max} bytes; split it")
        if is_stream:
            raise error
        return Unreadable(error)

    return read_checked


def _unreadable(reason: str, description: str) -> InvalidArgumentError:
    violation = FieldViolation(field="(request)", reason=f"REQUEST_{reason}", description=description)
    return InvalidArgumentError(violations=[violation])
