"""Child processes with an owner: each logs to a file, and none outlives whoever started it, `kill -9` included.

Knows nothing of what it runs. Linux only: a child's life is bound by `PR_SET_PDEATHSIG`, which follows the *thread*
that started it, so start children from the main thread.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testkit.errors import TestkitError

_LAUNCHER = Path(__file__).with_name("_launch.py")
_POLL_SECONDS = 0.01
_LOG_TAIL_CHARACTERS = 2_000


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to run, and as whom."""

    arguments: Sequence[str]
    log_file: Path
    environment: Mapping[str, str] | None = None
    directory: Path | None = None
    uid: int = -1
    gid: int = -1
    death_signal: signal.Signals = signal.SIGKILL
    stdout_file: Path | None = None


@dataclass
class ChildProcess:
    """One running child; `kill9` and `stop` are safe to call twice."""

    command: Command
    _popen: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def pid(self) -> int:
        """Return the process id of the program itself, not of a wrapper."""
        if self._popen is None:
            message = "the process was not started"
            raise TestkitError(message)
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Tell whether the child has been started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Start the program with its output appended to the log file.

        Raises:
            TestkitError: it runs already.
        """
        if self.is_running:
            message = f"already running as {self.pid}: {self.command.arguments[0]}"
            raise TestkitError(message)
        command = self.command
        launcher = [
            sys.executable,
            "-I",
            "-S",
            str(_LAUNCHER),
            str(os.getpid()),
            str(int(command.death_signal)),
            str(command.uid),
            str(command.gid),
        ]
        with contextlib.ExitStack() as files:
            log = files.enter_context(command.log_file.open("ab"))
            stdout = log if command.stdout_file is None else files.enter_context(command.stdout_file.open("wb"))
            self._popen = subprocess.Popen(
                [*launcher, *command.arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=log,
                cwd=command.directory,
                env=None if command.environment is None else dict(command.environment),
                # Ctrl-C in a terminal must reach the starter alone, which ends its children in their right order.
                process_group=0,
            )

    def wait_until(self, condition: Callable[[], bool], *, timeout_seconds: float) -> None:
        """Block until the condition holds.

        Raises:
            TestkitError: the child ended, or the time was up, first; the message carries the end of its log.
        """
        give_up_at = time.monotonic() + timeout_seconds
        while not condition():
            if not self.is_running:
                raise TestkitError(self._explain("ended before it was ready"))
            if time.monotonic() > give_up_at:
                raise TestkitError(self._explain(f"was not ready after {timeout_seconds} s"))
            time.sleep(_POLL_SECONDS)

    async def wait_until_async(self, condition: Callable[[], bool], *, timeout_seconds: float) -> None:
        """Do as `wait_until` does, without blocking the event loop.

        Raises:
            TestkitError: as `wait_until`.
        """
        give_up_at = time.monotonic() + timeout_seconds
        while not condition():
            if not self.is_running or time.monotonic() > give_up_at:
                self.wait_until(condition, timeout_seconds=0)
            await asyncio.sleep(_POLL_SECONDS)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal if the child still runs."""
        if self._popen is not None:
            self._popen.send_signal(number)

    def kill9(self) -> None:
        """End the child at once, as a power cut would, and reap it."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

    def stop(self, *, number: signal.Signals = signal.SIGTERM, grace_seconds: float = 15) -> int | None:
        """Ask the child to end, insist after the grace, and return its exit status."""
        if self._popen is None:
            return None
        self._popen.send_signal(number)
        try:
            return self._popen.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill9()
            return self._popen.returncode

    def log_tail(self) -> str:
        """Return the end of the log file."""
        return self.command.log_file.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]

    def _explain(self, what: str) -> str:
        name = " ".join(Path(argument).name for argument in self.command.arguments[:3])
        return f"{name} {what}; {self.command.log_file} ends with:\n{self.log_tail()}"
