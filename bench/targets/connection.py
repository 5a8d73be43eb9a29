"""A gRPC channel over mTLS, as a service of the platform opens it; messages go as bytes."""

from pathlib import Path

import grpc
import grpc.aio

from bench.jobs import Grpc


def open_channel(server: Grpc) -> grpc.aio.Channel:
    """Return a channel; the caller closes it."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=Path(server.tls.ca).read_bytes(),
        private_key=Path(server.tls.private_key).read_bytes(),
        certificate_chain=Path(server.tls.certificate).read_bytes(),
    )
    return grpc.aio.secure_channel(f"localhost:{server.port}", credentials)
