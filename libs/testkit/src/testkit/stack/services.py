"""One service process: how it is started, waited for, ended and started again on its old port."""

import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from testkit.errors import TestkitError
from testkit.processes import ChildProcess, Command

_START_SECONDS = 60
_STOP_SECONDS = 30


class Service(StrEnum):
    """A service of the suite, by the name of its package."""

    KEYVAULT = "keyvault"
    METERING = "metering"
    ROUTER = "router"


class ServiceProcess:
    """One replica of one service."""

    def __init__(self, service: Service, *, replica: int, directory: Path, environment: Mapping[str, str]) -> None:
        """Prepare; logs go to `<service>-<replica>.log`, the ready line to `….out`."""
        self.service = service
        self.replica = replica
        self.log_file = directory / f"{service}-{replica}.log"
        self._ready_file = directory / f"{service}-{replica}.out"
        self._directory = directory
        self._environment = dict(environment)
        self._process: ChildProcess | None = None
        self._grpc_port = 0
        self._admin_port = 0

    @property
    def grpc_port(self) -> int:
        """Return the port that gRPC is served on."""
        return self._known(self._grpc_port)

    @property
    def admin_port(self) -> int:
        """Return the port of health, readiness and metrics."""
        return self._known(self._admin_port)

    @property
    def environment(self) -> dict[str, str]:
        """Return what it is told, for a further process of the same service."""
        return dict(self._environment)

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._require().pid

    @property
    def is_running(self) -> bool:
        """Tell whether it runs."""
        return self._process is not None and self._process.is_running

    def start(self) -> None:
        """Start it, on its old ports if it ran before, and wait until it says that it is ready.

        Raises:
            TestkitError: it did not become ready; the message carries the end of its log.
        """
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start it without waiting, so that several can start at once."""
        prefix = f"BYOK_{self.service.upper()}_"
        listen = {
            f"{prefix}SERVER__LISTEN": f"127.0.0.1:{self._grpc_port}",
            f"{prefix}ADMIN__LISTEN": f"127.0.0.1:{self._admin_port}",
        }
        self._ready_file.unlink(missing_ok=True)
        self._process = ChildProcess(
            Command(
                arguments=[sys.executable, "-m", self.service],
                log_file=self.log_file,
                stdout_file=self._ready_file,
                environment=listen | self._environment,
                directory=self._directory,
            )
        )
        self._process.start()

    def wait_until_ready(self) -> None:
        """Wait for the ready line.

        Raises:
            TestkitError: it did not come.
        """
        self._require().wait_until(self._is_ready, timeout_seconds=_START_SECONDS)

    async def start_async(self) -> None:
        """Do as `start` does, without blocking the event loop.

        Raises:
            TestkitError: as `start`.
        """
        self.launch()
        await self._require().wait_until_async(self._is_ready, timeout_seconds=_START_SECONDS)

    def stop(self) -> int | None:
        """Ask it to drain and end, insist after a while, and return its exit status."""
        return None if self._process is None else self._process.stop(grace_seconds=_STOP_SECONDS)

    def kill9(self) -> None:
        """End it at once."""
        self._require().kill9()

    def log_tail(self) -> str:
        """Return the end of its log."""
        return self._require().log_tail()

    def _is_ready(self) -> bool:
        if not self._ready_file.exists():
            return False
        for line in self._ready_file.read_text().splitlines():
            ready = json.loads(line)
            if ready.get("event") == "ready":
                self._grpc_port, self._admin_port = ready["grpc_port"], ready["admin_port"]
                return True
        return False

    def _require(self) -> ChildProcess:
        if self._process is None:
            message = f"{self.service} {self.replica} was not started"
            raise TestkitError(message)
        return self._process

    def _known(self, port: int) -> int:
        if port == 0:
            message = f"{self.service} {self.replica} has not been ready yet"
            raise TestkitError(message)
        return port
