"""Reads this process's own standard error, to see what gRPC's C++ core says there and nowhere else.

A handshake that fails (no certificate, a foreign CA, no TLS) never reaches Python: the core writes one line and closes
the connection. The tap counts those lines by cause and turns every other line into a log event, redacted like the
rest. Python's own crash reports keep the real standard error.
"""

import faulthandler
import os
import re
import threading
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO, Final, Self

_FAILED_HANDSHAKE: Final = re.compile(r"Handshake failed.*?(?:OPENSSL_internal:([A-Z0-9_]+)|$)")
_STDERR: Final = 2
_LINE_MAX: Final = 8_192


class StderrTap:
    """While open, what is written to file descriptor 2 comes here, line by line.

    The callbacks run in the tap's own thread. Handshakes of outbound connections that fail are counted as well; the
    core does not tell which side it was.
    """

    def __init__(self, *, on_failed_handshake: Callable[[str], None], on_line: Callable[[str], None]) -> None:
        """Make a tap.

        Args:
            on_failed_handshake: Gets the cause, in OpenSSL's words (`PEER_DID_NOT_RETURN_A_CERTIFICATE`), or `OTHER`.
            on_line: Gets every other line.
        """
        self._on_failed_handshake = on_failed_handshake
        self._on_line = on_line
        self._thread: threading.Thread | None = None
        self._real: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Put the tap in place."""
        self._real = os.fdopen(os.dup(_STDERR), "wb", 0)
        faulthandler.enable(file=self._real)
        source, sink = os.pipe()
        os.dup2(sink, _STDERR)
        os.close(sink)
        self._thread = threading.Thread(target=self._read, args=(source,), name="stderr-tap", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give standard error back, and wait until every line was handled."""
        if self._real is None or self._thread is None:
            return
        # The pipe's last writer goes, so the reader meets the end of it.
        os.dup2(self._real.fileno(), _STDERR)
        self._thread.join(timeout=1.0)
        faulthandler.disable()
        self._real.close()

    def _read(self, source: int) -> None:
        with os.fdopen(source, "rb") as lines:
            while line := lines.readline(_LINE_MAX):
                self._handle(line.decode("utf-8", "replace").rstrip())

    def _handle(self, line: str) -> None:
        found = _FAILED_HANDSHAKE.search(line)
        if found is not None:
            self._on_failed_handshake(found[1] or "OTHER")
        elif line:
            self._on_line(line)
