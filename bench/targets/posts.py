"""Posts over HTTP/1.1 with keep-alive, as lean as a client can be, so that the server is what is measured."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from typing_extensions import override

from bench.closed_loop import Call
from bench.errors import BenchError
from bench.jobs import HttpJob

_HEAD_END = b"\r\n\r\n"


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.WriteTransport | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self.is_open = True

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do what asyncio's do without being them.
        self._transport = cast("asyncio.WriteTransport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._answer is not None and not self._answer.done() and (end := _end_of_answer(self._received)):
            self._answer.set_result(bytes(self._received[:end]))
            del self._received[:end]

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BenchError("the server closed the connection"))

    def request(self, wire: bytes) -> asyncio.Future[bytes]:
        """Send a request; the future is its answer."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(wire)
        return self._answer

    def close(self) -> None:
        """Close."""
        if self._transport is not None:
            self._transport.close()


def _end_of_answer(received: bytearray) -> int:
    """Return where the first answer ends, or 0 while it is not whole."""
    head_end = received.find(_HEAD_END)
    if head_end < 0:
        return 0
    head = bytes(received[:head_end]).lower()
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        end = head_end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])
        return end if len(received) >= end else 0
    # Chunked: only its last chunk is empty, and the answers here hold no such line of their own.
    last = received.find(b"\r\n0\r\n\r\n", head_end)
    return last + 7 if last >= 0 else 0


@asynccontextmanager
async def posts(job: HttpJob) -> AsyncIterator[Call]:
    """Give a call that posts on a free connection, opening one when there is none."""
    context = None if job.ca is None else ssl.create_default_context(cafile=job.ca)
    body = job.body.encode()
    head = [
        f"POST {job.path} HTTP/1.1",
        f"Host: localhost:{job.port}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in job.headers.items()),
    ]
    wire = "\r\n".join(head).encode() + _HEAD_END + body
    expected = job.must_contain.encode()
    free: list[_Connection] = []

    async def connection() -> _Connection:
        while free:
            if (kept := free.pop()).is_open:
                return kept
        loop = asyncio.get_running_loop()
        _, fresh = await loop.create_connection(
            _Connection, "127.0.0.1", job.port, ssl=context, server_hostname=None if context is None else "localhost"
        )
        return fresh

    async def call() -> int:
        used = await connection()
        answer = await used.request(wire)
        free.append(used)
        if not answer.startswith(b"HTTP/1.1 200") or expected not in answer:
            raise BenchError(f"unexpected answer: {answer[:300].decode(errors='replace')}")
        return 1

    yield call
    for each in free:
        each.close()
