"""Cuts a stream of bytes into events: server-sent events (WHATWG) and lines of JSON.

How the bytes arrive makes no difference. Both cutters bound what they hold, because a vendor's stream is not trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EVENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""The largest event; an image in a stream is a few megabytes."""

_CR: Final = 0x0D
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class EventTooLargeError(ValueError):
    """One event is larger than any that a vendor sends."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event: its name, empty where there is none, and its data."""

    name: str
    data: bytes


class LineCutter:
    """Cuts bytes into lines that end in LF, CRLF or, where allowed, CR alone."""

    def __init__(self, *, bare_cr: bool) -> None:
        self._bare_cr = bare_cr
        self._rest = bytearray()
        self._seen = 0
        self._skip_lf = False
        self._at_start = True

    def cut(self, chunk: bytes) -> list[bytes]:
        """Return the lines that the chunk completes, without their ends.

        Raises:
            EventTooLargeError: A line has no end within the bound.
        """
        self._rest += chunk
        if self._at_start and not self._drop_byte_order_mark():
            return []
        lines: list[bytes] = []
        start = 0
        while (end := self._line_end(max(start, self._seen))) >= 0:
            is_cr = self._rest[end] == _CR
            if not (self._skip_lf and end == start and not is_cr):
                lines.append(bytes(self._rest[start:end]).removesuffix(b"\r"))
            self._skip_lf = is_cr
            start = end + 1
            self._seen = start
        del self._rest[:start]
        self._seen = len(self._rest)
        if self._rest:
            self._skip_lf = False
        if len(self._rest) > EVENT_BYTES_MAX:
            message = f"a line exceeds {EVENT_BYTES_MAX} bytes"
            raise EventTooLargeError(message)
        return lines

    def remainder(self) -> bytes:
        """Return what came after the last line's end."""
        rest, self._rest, self._seen = bytes(self._rest), bytearray(), 0
        return rest

    def _line_end(self, start: int) -> int:
        lf = self._rest.find(b"\n", start)
        if not self._bare_cr:
            return lf
        cr = self._rest.find(b"\r", start, lf if lf >= 0 else len(self._rest))
        return cr if cr >= 0 else lf

    def _drop_byte_order_mark(self) -> bool:
        """Drop a leading mark; say whether enough has come to know."""
        if len(self._rest) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(self._rest):
            return False
        self._at_start = False
        if self._rest.startswith(_BYTE_ORDER_MARK):
            del self._rest[: len(_BYTE_ORDER_MARK)]
        return True


class EventCutter:
    """Cuts bytes into server-sent events; comments, ids and retry times are passed over."""

    def __init__(self) -> None:
        self._lines = LineCutter(bare_cr=True)
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0
        self._is_bare = False

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Return the events that the chunk completes.

        Raises:
            EventTooLargeError: An event has no end within the bound.
        """
        events = []
        for line in self._lines.cut(chunk):
            event = self._take(line)
            if event is not None:
                events.append(event)
        return events

    def finish(self) -> list[ServerSentEvent]:
        """Return the event that the end of the stream left without its blank line, where there is one."""
        rest = self._lines.remainder()
        if rest:
            self._take(rest.removesuffix(b"\r"))
        event = self._take(b"")
        return [] if event is None else [event]

    def _take(self, line: bytes) -> ServerSentEvent | None:
        if not line:
            return self._dispatch()
        if self._is_bare or line.startswith(b"{"):
            # Some hosts drop the field's name when they report an error in a stream, and some spread it over lines.
            self._is_bare = True
            self._gather(line)
            return None
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._gather(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        return None

    def _gather(self, data: bytes) -> None:
        self._data.append(data)
        self._size += len(data)
        if self._size > EVENT_BYTES_MAX:
            message = f"an event exceeds {EVENT_BYTES_MAX} bytes"
            raise EventTooLargeError(message)

    def _dispatch(self) -> ServerSentEvent | None:
        name, data = self._name, self._data
        self._name, self._data, self._size, self._is_bare = "", [], 0, False
        return ServerSentEvent(name, b"\n".join(data)) if data else None
