"""A trace collector that keeps what it is sent, as bytes, for tests that look for what must not be in them."""

from types import TracebackType
from typing import Self

import grpc

_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class TraceCollector:
    """An OTLP endpoint on a free loopback port."""

    def __init__(self) -> None:
        """Prepare."""
        self.exports: list[bytes] = []
        self._server = grpc.aio.server()
        self._port = 0

    @property
    def endpoint(self) -> str:
        """Return the address for `TELEMETRY__OTLP_ENDPOINT`."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        """Listen."""
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self._export)
        service, _, method = _EXPORT.removeprefix("/").partition("/")
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self._server.stop(None)

    async def _export(self, request: bytes, _context: object) -> bytes:
        self.exports.append(request)
        # An empty ExportTraceServiceResponse.
        return b""
