"""Unary gRPC calls over HTTP/2, by hand: a sixth of what a call costs with grpc.aio.

The load shares its cores with all that is not measured, and grpc.aio's client costs as much as a whole evaluation may:
with it the load would be the bottleneck, not the Router. The server sees what it would see from any gRPC client: one
TLS connection, HPACK with a dynamic table (RFC 7541), flow control (RFC 9113, section 5.2).

    connection preface, SETTINGS                    once
    HEADERS (END_HEADERS), DATA (END_STREAM)        a request: the message with its 5-byte prefix
    HEADERS, DATA, HEADERS (END_STREAM)             an answer; without DATA it is a failure

Header blocks are not decoded: an answer is a success when it carries a message, and the text of a failure is whatever
is legible in its trailers.
"""

import asyncio
import re
from collections import deque
from typing import Final, cast

from typing_extensions import override

from bench.errors import BenchError

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_FRAME_HEAD: Final = 9
_WINDOW_MAX: Final = 2**31 - 1
_WINDOW_INITIAL: Final = 65_535
_MESSAGE_BYTES_MAX: Final = 16_000
"""Below a frame and a stream's window, so that a message is one frame and never waits for its stream."""
_REPLENISH: Final = 2**29
_LEGIBLE: Final = re.compile(rb"[\x20-\x7e]{4,}")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class _Answer:
    """What has come of one call."""

    __slots__ = ("body", "future", "trailers")

    def __init__(self, future: asyncio.Future[bytes]) -> None:
        self.future = future
        self.body = b""
        self.trailers = b""


class Http2Connection(asyncio.Protocol):
    """One connection that makes calls; headers of a method are sent in full once, then by index."""

    def __init__(self, authority: str) -> None:
        """Make a connection to be opened by the event loop."""
        self._authority = authority
        self._transport: asyncio.WriteTransport | None = None
        self._received = b""
        self._open: dict[int, _Answer] = {}
        self._next_stream = 1
        self._blocks: dict[str, bytes] = {}
        self._table_size = 0
        self._window = _WINDOW_INITIAL
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._outgoing: list[bytes] = []
        self._unacknowledged = 0
        self._failure = ""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do what asyncio's do without being them.
        self._transport = cast("asyncio.WriteTransport", transport)
        # Setting 4 is the initial window of a stream: answers are never held back.
        settings = (4).to_bytes(2, "big") + _WINDOW_MAX.to_bytes(4, "big")
        self._send(_PREFACE + _frame(_SETTINGS, 0, 0, settings))
        self._send(_frame(_WINDOW_UPDATE, 0, 0, (_WINDOW_MAX - _WINDOW_INITIAL).to_bytes(4, "big")))

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the server closed the connection {exc or ''}")

    @override
    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        at = 0
        while len(received) - at >= _FRAME_HEAD:
            end = at + _FRAME_HEAD + int.from_bytes(received[at : at + 3], "big")
            if len(received) < end:
                break
            stream = int.from_bytes(received[at + 5 : at + 9], "big") & _WINDOW_MAX
            self._take(received[at + 3], received[at + 4], stream, received[at + _FRAME_HEAD : end])
            at = end
        self._received = received[at:]

    def call(self, method: str, message: bytes) -> asyncio.Future[bytes]:
        """Send a request; the future is the message of its answer.

        Raises:
            BenchError: through the future, when there is none.
        """
        assert len(message) < _MESSAGE_BYTES_MAX, "a larger message needs more than one frame"
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if self._failure:
            future.set_exception(BenchError(self._failure))
            return future
        stream = self._next_stream
        self._next_stream += 2
        self._open[stream] = _Answer(future)
        self._send(_frame(_HEADERS, _END_HEADERS, stream, self._block(method)))
        self._waiting.append((stream, b"\0" + len(message).to_bytes(4, "big") + message))
        self._send_waiting()
        return future

    def close(self) -> None:
        """Close."""
        if self._transport is not None:
            self._transport.close()

    def _send_waiting(self) -> None:
        """Send what the connection's window has room for; all of a message, or none of it."""
        while self._waiting and len(self._waiting[0][1]) <= self._window:
            stream, prefixed = self._waiting.popleft()
            self._window -= len(prefixed)
            self._send(_frame(_DATA, _END_STREAM, stream, prefixed))

    def _send(self, frame: bytes) -> None:
        # What one turn of the event loop sends goes out as one piece.
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(frame)

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in {_DATA, _HEADERS}:
            self._take_part(kind, flags, stream, payload)
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
            self._send_waiting()
        elif kind in {_SETTINGS, _PING} and not flags & _ACK:
            self._send(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind == _RST_STREAM and stream in self._open:
            self._end(self._open.pop(stream), f"the server reset the stream: code {int.from_bytes(payload, 'big')}")
        elif kind == _GOAWAY:
            self._fail(f"the server said goodbye: {payload[4:]!r}")

    def _take_part(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        answer = self._open.get(stream)
        if kind == _DATA:
            self._acknowledge(len(payload))
        if answer is None:
            return
        if kind == _DATA:
            answer.body += payload
        else:
            answer.trailers = payload
        if flags & _END_STREAM:
            del self._open[stream]
            legible = b" ".join(_LEGIBLE.findall(answer.trailers)).decode()
            self._end(answer, "" if len(answer.body) > 4 else f"the call failed: {legible}")

    def _end(self, answer: _Answer, failure: str) -> None:
        if answer.future.done():
            return
        if failure:
            answer.future.set_exception(BenchError(failure))
        else:
            answer.future.set_result(answer.body[5:])

    def _fail(self, failure: str) -> None:
        self._failure = failure
        for answer in self._open.values():
            self._end(answer, failure)
        self._open.clear()

    def _acknowledge(self, length: int) -> None:
        self._unacknowledged += length
        if self._unacknowledged > _REPLENISH:
            self._send(_frame(_WINDOW_UPDATE, 0, 0, self._unacknowledged.to_bytes(4, "big")))
            self._unacknowledged = 0

    def _block(self, method: str) -> bytes:
        """Return the header block of a method: in full the first time, which fills the server's table, then indexed."""
        if (known := self._blocks.get(method)) is not None:
            return known
        headers = (
            (b":path", f"/{method}".encode()),
            (b":authority", self._authority.encode()),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"user-agent", b"byok-bench"),
            (b"grpc-timeout", b"30S"),
        )
        assert not self._blocks or self._table_size == len(headers) * len(self._blocks)
        # Entries of methods known before move back by what this one puts in front of them.
        self._blocks = {name: _shifted(block, len(headers)) for name, block in self._blocks.items()}
        self._table_size += len(headers)
        # 0x83 and 0x87 are POST and https in the static table; the dynamic one begins at 62, its newest entry first.
        self._blocks[method] = b"\x83\x87" + bytes(0x80 | 62 + place for place in reversed(range(len(headers))))
        return b"\x83\x87" + b"".join(b"\x40" + _text(name) + _text(value) for name, value in headers)


def _shifted(block: bytes, places: int) -> bytes:
    return block[:2] + bytes(0x80 | (each & 0x7F) + places for each in block[2:])


def _text(value: bytes) -> bytes:
    """Return a string literal of HPACK, without Huffman coding."""
    assert len(value) < 127, "a longer one has a length of several bytes"
    return bytes((len(value),)) + value
