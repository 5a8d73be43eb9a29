"""Logging: one JSON object a line, redacted, written in bulk.

    configure_logging("keyvault", level="info")
    log = structlog.get_logger()
    log.info("provider_key.created", provider_key_id=key_id)

What the standard library, asyncio and gRPC log goes the same way. Lines are gathered for 50 ms and written at once,
because a write is dearer than all the rest of a line; errors are written at once. Never log a message object: its
`str()` prints secrets (here it would be named by its type only).
"""

import asyncio
import atexit
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, MutableMapping
from typing import Any, BinaryIO, Final

import orjson
import structlog
from typing_extensions import override

from servicekit.calls import CURRENT_CALL
from servicekit.clock import SystemClock
from servicekit.redaction import redact_field, redact_text

Event = MutableMapping[str, Any]

_CLOCK: Final = SystemClock()
_FLUSH_INTERVAL_S: Final = 0.05
_BUFFER_BYTES_MAX: Final = 256 * 1024
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "warn": 30, "error": 40, "exception": 40, "critical": 50}


class BufferedWriter:
    """Writes lines to a stream in bulk; bounded, and never later than 50 ms while a loop runs."""

    def __init__(self, stream: BinaryIO) -> None:
        """Write to `stream`, and what is left when the interpreter ends, too."""
        self._stream = stream
        self._lines: list[bytes] = []
        self._size = 0
        self._lock = threading.Lock()
        self._is_scheduled = False
        atexit.register(self.flush)

    def write(self, line: bytes, *, is_urgent: bool) -> None:
        """Take one line; write now if it is urgent, if there is no loop to come back on, or if enough has gathered."""
        with self._lock:
            self._lines.append(line)
            self._size += len(line)
            must_flush = is_urgent or self._size >= _BUFFER_BYTES_MAX
        if must_flush or not self._is_scheduled:
            loop = None if must_flush else _running_loop()
            if loop is None:
                self.flush()
            else:
                self._is_scheduled = True
                loop.call_later(_FLUSH_INTERVAL_S, self._flush_scheduled)

    def flush(self) -> None:
        """Write what has gathered."""
        with self._lock:
            lines, self._lines, self._size = self._lines, [], 0
            if lines:
                try:
                    self._stream.write(b"".join(lines))
                    self._stream.flush()
                except (OSError, ValueError):
                    # Whoever read the log is gone. Serving goes on: a service must not die of its log.
                    return

    def _flush_scheduled(self) -> None:
        self._is_scheduled = False
        self.flush()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _Renderer:
    """The last processor: redacts an event, renders it and hands it to the writer."""

    def __init__(self, service: str, writer: BufferedWriter) -> None:
        self._service = service
        self._writer = writer

    def __call__(self, _logger: object, method: str, event: Event) -> str:
        level = str(event.pop("level", method))
        line: dict[str, object] = {
            "time": _CLOCK.now().isoformat(timespec="milliseconds"),
            "level": level,
            "service": self._service,
        }
        call = CURRENT_CALL.get()
        if call is not None:
            line["method"] = call.method
            if call.request_id:
                line["request_id"] = redact_text(call.request_id)
        failure = _failure_text(event.pop("exc_info", None))
        if failure is not None:
            line["exception"] = redact_text(failure)
        for name, value in event.items():
            line[name] = redact_field(name, value)
        self._writer.write(_dump(line), is_urgent=_LEVELS.get(level, 0) >= logging.ERROR)
        raise structlog.DropEvent


def _dump(line: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(line, default=_name_type, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # Lone surrogates and integers beyond 64 bits; a caller must not fail because of what it logged.
        return json.dumps(line, default=_name_type).encode() + b"\n"


def _name_type(value: object) -> str:
    return f"<{type(value).__name__}>"


def _failure_text(exc_info: object) -> str | None:
    if exc_info is None or exc_info is False:
        return None
    if isinstance(exc_info, BaseException):
        error: BaseException | None = exc_info
    elif isinstance(exc_info, tuple):
        error = exc_info[1]
    else:
        error = sys.exception()
    if error is None:
        return None
    # Without locals: they hold keys.
    return "".join(traceback.format_exception(error))


class _StandardHandler(logging.Handler):
    """Sends what the standard library's logging says down the same path."""

    def __init__(self, render: Callable[[object, str, Event], str]) -> None:
        super().__init__()
        self._render = render

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: Event = {"event": record.getMessage(), "logger": record.name}
        except (TypeError, ValueError):
            event = {"event": str(record.msg), "logger": record.name}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        try:
            self._render(None, record.levelname.lower(), event)
        except structlog.DropEvent:
            return


def configure_logging(
    service: str, *, level: str = "info", stream: BinaryIO | None = None, is_final: bool = True
) -> BufferedWriter:
    """Send every log of this process, redacted, to `stream`, or to a private copy of standard error.

    Args:
        service: Named in every line.
        level: The least level that is logged.
        stream: Where lines go.
        is_final: Whether loggers may keep this configuration for good, which saves a lookup at each line. Tests, which
            configure more than once, say no.

    Returns:
        The writer, for a caller that must flush it.
    """
    writer = BufferedWriter(stream if stream is not None else os.fdopen(os.dup(2), "wb", 0))
    renderer = _Renderer(service, writer)
    threshold = _LEVELS[level]
    structlog.configure(
        processors=[renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=is_final,
    )
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(_StandardHandler(renderer))
    root.setLevel(threshold)
    # asyncio in debug mode and some clients log the arguments of calls; secrets are among them.
    for chatty in ("asyncio", "grpc", "aiohttp.access", "httpx", "httpcore", "openai", "anthropic"):
        logging.getLogger(chatty).setLevel(max(threshold, logging.WARNING))
    return writer
