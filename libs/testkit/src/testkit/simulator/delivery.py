"""Puts answers on the wire: whole, or broken in the way that a fault says."""

import asyncio
import math
import socket
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import orjson
from aiohttp import web

from testkit.simulator.faults import FaultKind, FaultRule
from testkit.simulator.replies import Reply

_MEBIBYTE = 1024 * 1024
_HTML = (
    b"<html><head><title>502 Bad Gateway</title></head><body><center><h1>502 Bad Gateway</h1></center></body></html>"
)


async def send(request: web.Request, reply: Reply) -> web.StreamResponse:
    """Send a reply whole: a plain one in one piece, a stream event by event."""
    if not reply.is_streaming:
        # Head and body leave in one write: apart, a kept-alive connection waits 40 ms for an acknowledgement.
        plain = web.Response(status=reply.status, body=reply.body, headers=_headers(reply))
        await plain.prepare(request)
        await plain.write_eof()
        return plain
    response = web.StreamResponse(status=reply.status, headers=_headers(reply))
    await response.prepare(request)
    for chunk in reply.chunks:
        await response.write(chunk)
    await response.write_eof()
    return response


async def send_broken(request: web.Request, reply: Reply, rule: FaultRule) -> web.StreamResponse:
    """Send a reply as the fault says. What this returns was not an answer, whatever arrived of it."""
    rewrite = _REWRITES.get(rule.kind)
    if rewrite is not None:
        return await send(request, _with_body(reply, rewrite(reply.body)))
    match rule.kind:
        case FaultKind.WRONG_CONTENT_TYPE:
            return await send(request, Reply(status=200, content_type="text/html", chunks=[_HTML]))
        case FaultKind.TRUNCATED_BODY:
            return await _truncated(request, reply)
        case FaultKind.STALL_MID_STREAM:
            return await _stalled(request, reply, rule.delay_seconds)
        case FaultKind.HUGE_BODY:
            return await _huge(request, rule.size_bytes)
        case FaultKind.DECOMPRESSION_BOMB:
            return await _bomb(request, rule.size_bytes)
        case _:
            return await _redirected(request, rule)


async def send_error_mid_stream(request: web.Request, reply: Reply, error: bytes) -> web.StreamResponse:
    """Begin to stream the reply, then report a failure in place of the rest."""
    response = web.StreamResponse(status=200, headers=_headers(reply))
    await response.prepare(request)
    for chunk in _first_half(reply.chunks):
        await response.write(chunk)
    await response.write(error)
    await response.write_eof()
    return response


def reset(request: web.Request) -> web.Response:
    """Cut the connection with a TCP reset; what is returned goes nowhere."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            # Zero linger makes close() send RST in place of FIN.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()


def _headers(reply: Reply) -> dict[str, str]:
    return {"content-type": reply.content_type} | reply.headers


def _with_body(reply: Reply, body: bytes) -> Reply:
    return Reply(status=reply.status, content_type=reply.content_type, chunks=[body], headers=reply.headers)


def _oddly_shaped(body: bytes) -> bytes:
    """Return JSON in which every value of the answer is of another type than its name promises."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        # A stream: each of its events would have to be changed; a list in place of them is odd enough.
        return b"[[]]"
    return orjson.dumps({name: _other_type(value) for name, value in answer.items()})


def _other_type(value: object) -> object:
    if isinstance(value, dict):
        return [{"unexpected": each} for each in value]
    if isinstance(value, list):
        return {"0": [None, -1, "text"]}
    return [value] if isinstance(value, str) else {"value": str(value)}


_REWRITES: dict[FaultKind, Callable[[bytes], bytes]] = {
    FaultKind.MALFORMED_JSON: lambda body: body[: len(body) // 2],
    FaultKind.EMPTY_BODY: lambda _body: b"",
    FaultKind.ODD_SHAPE: _oddly_shaped,
}


def _first_half(chunks: Sequence[bytes]) -> Sequence[bytes]:
    return chunks[: max(1, len(chunks) // 2)]


async def _truncated(request: web.Request, reply: Reply) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=_headers(reply))
    if not reply.is_streaming:
        response.content_length = len(reply.body)
    await response.prepare(request)
    half = b"".join(_first_half(reply.chunks)) if reply.is_streaming else reply.body[: len(reply.body) // 2]
    await response.write(half)
    _hang_up(request)
    return response


async def _stalled(request: web.Request, reply: Reply, seconds: float) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=_headers(reply))
    if not reply.is_streaming:
        response.content_length = len(reply.body)
    await response.prepare(request)
    half = b"".join(_first_half(reply.chunks)) if reply.is_streaming else reply.body[: len(reply.body) // 2]
    await response.write(half)
    await asyncio.sleep(seconds)
    _hang_up(request)
    return response


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


async def _huge(request: web.Request, size: int) -> web.StreamResponse:
    """Send valid JSON that never seems to end."""
    response = web.StreamResponse(status=200, headers={"content-type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"padding": "')
    padding = b"x" * _MEBIBYTE
    for _ in range(math.ceil(size / _MEBIBYTE)):
        await response.write(padding)
    await response.write(b'"}')
    await response.write_eof()
    return response


async def _bomb(request: web.Request, size: int) -> web.StreamResponse:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    return await _plain(request, web.Response(status=200, body=gzip_bomb(size), headers=headers))


async def _redirected(request: web.Request, rule: FaultRule) -> web.StreamResponse:
    return await _plain(request, web.Response(status=307, headers={"location": rule.location}))


async def _plain(request: web.Request, response: web.Response) -> web.StreamResponse:
    await response.prepare(request)
    await response.write_eof()
    return response


@lru_cache(maxsize=4)
def gzip_bomb(size: int) -> bytes:
    """Return a small gzip stream that unpacks to a JSON string of at least `size` bytes.

    A block that ends in a full flush depends on nothing before it, so one compressed mebibyte can be repeated.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = packer.compress(b'{"padding": "') + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b"x" * _MEBIBYTE) + packer.flush(zlib.Z_FULL_FLUSH)
    tail = packer.compress(b'"}') + packer.flush(zlib.Z_FINISH)
    count = math.ceil(size / _MEBIBYTE)
    data = b'{"padding": "'
    crc = zlib.crc32(data)
    for _ in range(count):
        crc = zlib.crc32(b"x" * _MEBIBYTE, crc)
    crc = zlib.crc32(b'"}', crc)
    length = len(data) + count * _MEBIBYTE + 2
    trailer = struct.pack("<II", crc, length & 0xFFFFFFFF)
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + head + block * count + tail + trailer
