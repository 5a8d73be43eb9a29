"""The life of a service's process: its loop, its signals, what it must not leak, and how it says that it is ready.

    def main(argv: Sequence[str]) -> None:
        invocation = load(Settings, argv)
        run("keyvault", lambda stop: serve(invocation.settings, stop), telemetry=invocation.settings.telemetry, …)

`stop` is set by SIGTERM or SIGINT: leave your `AsyncExitStack`, which drains. A second signal ends the wait.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

import orjson
import structlog
import uvloop

from servicekit.metrics import Metrics
from servicekit.settings import TelemetrySettings
from servicekit.stderr_tap import StderrTap
from servicekit.telemetry import configure_logging

_log = structlog.get_logger("servicekit.process")

_PR_SET_DUMPABLE: Final = 4
# A collection of the youngest generation every 700 allocations, Python's default, costs 15 to 38 µs an operation here.
_GC_THRESHOLD: Final = (50_000, 20, 50)
_CORE_LINES_KEPT_MAX: Final = 1_000

Main = Callable[[asyncio.Event], Coroutine[Any, Any, None]]


def run(service: str, main: Main, *, telemetry: TelemetrySettings, metrics: Metrics) -> None:
    """Run `main` until it returns; it is given an event that is set when the process is asked to stop."""
    _refuse_dumps()
    _let_threads_finish()
    configure_logging(service, level=telemetry.log_level)
    failures = metrics.counters(
        "grpc_handshake_failures_total",
        "TLS handshakes that failed, by cause; those of outbound connections are among them.",
        labels=("cause",),
    )
    with (
        StderrTap(
            on_failed_handshake=lambda cause: failures.at(cause).inc(),
            on_line=lambda line: _log.warning("process.stderr", text=line),
        ),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        try:
            runner.run(_run_until_stopped(main))
        except Exception:  # noqa: BLE001 (as below)
            # Python's own report would print the exception as it is, and a connection error may quote a password.
            _log.exception("process.failed")
            raise SystemExit(1) from None


def announce_ready(*, grpc_port: int, admin_port: int) -> None:
    """Print the one line that says where this process serves, and keep what start-up made out of every collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLD)
    line = orjson.dumps({"event": "ready", "grpc_port": grpc_port, "admin_port": admin_port})
    sys.stdout.write(line.decode() + "\n")
    sys.stdout.flush()


async def _run_until_stopped(main: Main) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def ask_to_stop() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask_to_stop)
    with contextlib.suppress(asyncio.CancelledError):
        await main(stop)


def _let_threads_finish() -> None:
    """Keep a thread that wakes from interrupting the one that runs.

    gRPC's core hands every event of a call from thread to thread. Interrupted each time, the event loop gets its events
    one by one; left to finish, it finds several at once, and a call costs a sixth less CPU. See sched(7), SCHED_BATCH.
    """
    if sys.platform == "linux":
        # Threads that start later inherit it. Where a sandbox forbids it, the process is slower and no worse.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _refuse_dumps() -> None:
    """Keep keys out of core files, and this process's memory from debuggers of the same user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
