"""How the server takes pings: spoken to in bare frames, since no client library pings as a stalled one does."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

Serve = Callable[..., Awaitable[Any]]

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS: Final = 4
_PING: Final = 6
_ACK: Final = 1
_PINGS: Final = 12


def _frame(kind: int, payload: bytes = b"", *, flags: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + bytes(4) + payload


async def _read_frame(reader: asyncio.StreamReader) -> tuple[int, int]:
    head = await reader.readexactly(9)
    await reader.readexactly(int.from_bytes(head[:3], "big"))
    return head[3], head[4]


async def test_pings_that_come_close_together_end_no_connection(serve: Serve) -> None:
    """A client that a busy machine held up sends its pings in one go, and its calls go on."""
    served = await serve()
    context = ssl.create_default_context(cafile=str(served.files.ca))
    context.load_cert_chain(served.files.certificate, served.files.private_key)
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("localhost", served.server.port, ssl=context)
    try:
        writer.write(_PREFACE + _frame(_SETTINGS))
        for number in range(_PINGS):
            writer.write(_frame(_PING, number.to_bytes(8, "big")))
            # A server that had enough would say GOAWAY and close: the read fails then.
            while await _read_frame(reader) != (_PING, _ACK):
                pass
    finally:
        writer.close()
