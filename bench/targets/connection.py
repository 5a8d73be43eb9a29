"""A gRPC channel over mTLS, as a service of the platform opens it; messages go as bytes."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from bench.jobs import Grpc

BytesCall = Callable[[bytes], Awaitable[bytes]]
"""Sends a serialised request and returns the serialised answer."""

_CALL_SECONDS: Final = 30


def open_channel(server: Grpc) -> grpc.aio.Channel:
    """Return a channel; the caller closes it."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=Path(server.tls.ca).read_bytes(),
        private_key=Path(server.tls.private_key).read_bytes(),
        certificate_chain=Path(server.tls.certificate).read_bytes(),
    )
    return grpc.aio.secure_channel(f"localhost:{server.port}", credentials)


def bytes_call(channel: grpc.aio.Channel, method: str) -> BytesCall:
    """Return a call of one RPC, named `package.Service/Method`, that leaves messages as bytes."""
    multicallable: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{method}")

    def call(request: bytes) -> Awaitable[bytes]:
        return multicallable(request, timeout=_CALL_SECONDS)

    return call
