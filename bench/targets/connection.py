"""Connections over mTLS, as a service of the platform opens them: by hand for load, by gRPC's library for the rest."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio

from bench.jobs import Grpc
from bench.targets.http2 import Http2Connection

BytesCall = Callable[[bytes], Awaitable[bytes]]
"""Sends a serialised request and returns the serialised answer."""


def open_channel(server: Grpc) -> grpc.aio.Channel:
    """Return a channel for stubs; the caller closes it."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=Path(server.tls.ca).read_bytes(),
        private_key=Path(server.tls.private_key).read_bytes(),
        certificate_chain=Path(server.tls.certificate).read_bytes(),
    )
    return grpc.aio.secure_channel(f"localhost:{server.port}", credentials)


@asynccontextmanager
async def open_connection(server: Grpc) -> AsyncIterator[Http2Connection]:
    """Open a connection for load."""
    context = ssl.create_default_context(cafile=server.tls.ca)
    context.load_cert_chain(server.tls.certificate, server.tls.private_key)
    context.set_alpn_protocols(["h2"])
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Http2Connection(f"localhost:{server.port}"),
        "127.0.0.1",
        server.port,
        ssl=context,
        server_hostname="localhost",
    )
    try:
        yield connection
    finally:
        connection.close()


def bytes_call(connection: Http2Connection, method: str) -> BytesCall:
    """Return a call of one RPC, named `package.Service/Method`."""

    def call(request: bytes) -> Awaitable[bytes]:
        return connection.call(method, request)

    return call
