"""The simulator at the speed that benches need: canned bytes from a bare asyncio protocol.

The first request of each kind is rendered faithfully; later ones of that kind get the same bytes again. Embeddings are
rendered anew when their body differs. There are no faults and no ledger but counts; the key is not looked at.
"""

import asyncio
import ssl
from functools import partial
from typing import cast

import orjson
from typing_extensions import override

from testkit.simulator.ledger import Totals
from testkit.simulator.rendering import METHODS, render
from testkit.simulator.replies import Making, Reply
from testkit.simulator.state import Latency
from testkit.simulator.vendors import ENDPOINTS, Route

_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
_PER_BODY = frozenset({Route.EMBEDDINGS, Route.OLLAMA_EMBED})
_CANNED_MAX = 1_000


class CannedAnswers:
    """Ready bytes for each kind of request."""

    def __init__(self) -> None:
        """Start with none."""
        self._canned: dict[tuple[bytes, bytes], tuple[bytes, int, int]] = {}
        self.totals = Totals()
        self.latency = Latency()

    def bytes_for(self, request_line: bytes, body: bytes) -> bytes:
        """Return the whole HTTP answer, head and body in one piece."""
        method, target = request_line.split(b" ", 2)[:2]
        endpoint = ENDPOINTS.get(target.partition(b"?")[0].decode())
        self.totals.calls += 1
        if endpoint is None or METHODS[endpoint.route] != method.decode():
            return _NOT_FOUND
        kind = (target, body if endpoint.route in _PER_BODY else b"stream" * (b'"stream":true' in body))
        canned = self._canned.get(kind)
        if canned is None:
            parsed = orjson.loads(body) if body else {}
            reply = render(endpoint, parsed, Making(call_id=1, now=1_760_000_000))
            canned = (_http(reply), reply.input_tokens, reply.output_tokens)
            if len(self._canned) < _CANNED_MAX:
                self._canned[kind] = canned
        answer, input_tokens, output_tokens = canned
        self.totals.billed_calls += 1
        self.totals.input_tokens += input_tokens
        self.totals.output_tokens += output_tokens
        return answer


class FastProtocol(asyncio.Protocol):
    """One kept-alive connection. Requests are answered in order; pipelining is not expected, nor broken."""

    def __init__(self, answers: CannedAnswers) -> None:
        """Answer from the given store."""
        self._answers = answers
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        # uvloop's TLS transports do what asyncio's do without being of their kind, so an assertion would fail.
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        buffer = self._buffer + data if self._buffer else data
        while (head_end := buffer.find(b"\r\n\r\n")) >= 0:
            head = buffer[:head_end]
            body_end = head_end + 4 + _content_length(head)
            if len(buffer) < body_end:
                break
            self._answer(head.partition(b"\r\n")[0], buffer[head_end + 4 : body_end])
            buffer = buffer[body_end:]
        self._buffer = buffer

    def _answer(self, request_line: bytes, body: bytes) -> None:
        answer = self._answers.bytes_for(request_line, body)
        seconds = self._answers.latency.seconds
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self._write, answer)
        else:
            self._write(answer)

    def _write(self, answer: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)


async def listen_fast(answers: CannedAnswers, context: ssl.SSLContext | None) -> asyncio.Server:
    """Listen on a free loopback port, with TLS if a context is given."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(partial(FastProtocol, answers), "127.0.0.1", 0, ssl=context, backlog=2048)


def _content_length(head: bytes) -> int:
    at = head.lower().find(b"\r\ncontent-length:")
    if at < 0:
        return 0
    return int(head[at + 17 :].split(b"\r\n", 1)[0])


def _http(reply: Reply) -> bytes:
    body = reply.body
    head = f"HTTP/1.1 {reply.status} OK\r\ncontent-type: {reply.content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body
