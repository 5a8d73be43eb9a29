"""Runs the simulator as a process of its own, owned by whoever starts it."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from servicekit.identity import TlsFiles
from testkit.errors import TestkitError
from testkit.processes import ChildProcess, Command
from testkit.simulator.addresses import Addresses

_START_SECONDS = 20


class SimulatorProcess:
    """One simulator process."""

    def __init__(
        self, directory: Path, *, tls: TlsFiles | None = None, is_fast: bool = False, latency_seconds: float = 0.0
    ) -> None:
        """Prepare; its log and ready line go to the directory.

        A later simulator in the same directory takes the same ports, so that keys which name them stay good.
        """
        directory.mkdir(parents=True, exist_ok=True)
        arguments = [sys.executable, "-m", "testkit.simulator", "--latency-seconds", str(latency_seconds)]
        if is_fast:
            arguments.append("--fast")
        if tls is not None:
            arguments += ["--certificate", str(tls.certificate), "--private-key", str(tls.private_key)]
        self._arguments = arguments
        self._log_file = directory / "simulator.log"
        self._ready_file = directory / "simulator.out"
        self._process = self._prepare([])

    @property
    def process(self) -> ChildProcess:
        """Return the process itself."""
        return self._process

    def start(self) -> Addresses:
        """Start, and return where it listens once it does.

        Raises:
            TestkitError: it did not come up.
        """
        if self._is_ready():
            old = self._addresses()
            try:
                return self._start(
                    f"--http-port={old.http_port}",
                    f"--https-port={old.https_port or 0}",
                    f"--control-port={old.control_port}",
                )
            except TestkitError:
                # Somebody else has taken one of them meanwhile.
                self._process.kill9()
        return self._start()

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

    def _prepare(self, ports: Sequence[str]) -> ChildProcess:
        arguments = [*self._arguments, *ports]
        return ChildProcess(Command(arguments=arguments, log_file=self._log_file, stdout_file=self._ready_file))

    def _start(self, *ports: str) -> Addresses:
        self._process = self._prepare(ports)
        self._ready_file.unlink(missing_ok=True)
        self._process.start()
        self._process.wait_until(self._is_ready, timeout_seconds=_START_SECONDS)
        return self._addresses()

    def _addresses(self) -> Addresses:
        ports = json.loads(self._ready_file.read_text())
        return msgspec.convert({name: ports[name] for name in Addresses.__struct_fields__}, Addresses)

    def _is_ready(self) -> bool:
        return self._ready_file.exists() and self._ready_file.read_text().endswith("\n")
