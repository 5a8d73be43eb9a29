"""Runs the simulator as a process of its own, owned by whoever starts it."""

import json
import sys
from pathlib import Path
from types import TracebackType

import msgspec

from servicekit.identity import TlsFiles
from testkit.processes import ChildProcess, Command
from testkit.simulator.addresses import Addresses

_START_SECONDS = 20


class SimulatorProcess:
    """One simulator process."""

    def __init__(
        self, directory: Path, *, tls: TlsFiles | None = None, is_fast: bool = False, latency_seconds: float = 0.0
    ) -> None:
        """Prepare; its log and ready line go to the directory."""
        directory.mkdir(parents=True, exist_ok=True)
        arguments = [sys.executable, "-m", "testkit.simulator", "--latency-seconds", str(latency_seconds)]
        if is_fast:
            arguments.append("--fast")
        if tls is not None:
            arguments += ["--certificate", str(tls.certificate), "--private-key", str(tls.private_key)]
        self._ready_file = directory / "simulator.out"
        self._process = ChildProcess(
            Command(arguments=arguments, log_file=directory / "simulator.log", stdout_file=self._ready_file)
        )

    @property
    def process(self) -> ChildProcess:
        """Return the process itself."""
        return self._process

    def start(self) -> Addresses:
        """Start, and return where it listens once it does.

        Raises:
            TestkitError: it did not come up.
        """
        self._ready_file.unlink(missing_ok=True)
        self._process.start()
        self._process.wait_until(self._is_ready, timeout_seconds=_START_SECONDS)
        ports = json.loads(self._ready_file.read_text())
        return msgspec.convert({name: ports[name] for name in Addresses.__struct_fields__}, Addresses)

    def stop(self) -> None:
        """Stop."""
        self._process.stop()

    def __enter__(self) -> Addresses:
        """Start, and return where it listens."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def _is_ready(self) -> bool:
        return self._ready_file.exists() and self._ready_file.read_text().endswith("\n")
