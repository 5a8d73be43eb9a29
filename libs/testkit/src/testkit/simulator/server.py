"""A simulator inside this process, for tests that want to reach into it; `process` runs one outside."""

import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web

from servicekit.identity import TlsFiles
from testkit.simulator.addresses import Addresses
from testkit.simulator.control import control_application
from testkit.simulator.handling import RequestHandler
from testkit.simulator.state import SimulatorState

_REQUEST_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where to listen on the loopback address; 0 takes a free port."""

    http: int = 0
    https: int = 0
    control: int = 0


class Simulator:
    """All vendors over https and http, on free loopback ports unless told otherwise."""

    def __init__(self, tls: TlsFiles | None = None, *, ports: Ports = Ports()) -> None:
        """Prepare; without a certificate only http is served."""
        self._ports = ports
        self.state = SimulatorState()
        self._tls = tls
        self._stack = AsyncExitStack()
        self._addresses: Addresses | None = None

    @property
    def addresses(self) -> Addresses:
        """Return where it listens."""
        if self._addresses is None:
            message = "the simulator was not started"
            raise RuntimeError(message)
        return self._addresses

    async def __aenter__(self) -> Self:
        """Start to listen."""
        providers = web.Application(client_max_size=_REQUEST_BYTES_MAX)
        providers.router.add_route("*", "/{path:.*}", RequestHandler(self.state).handle)
        runner = web.AppRunner(providers, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        http_port = await _listen(runner, self._ports.http)
        https_port = None if self._tls is None else await _listen(runner, self._ports.https, server_context(self._tls))
        control = web.AppRunner(control_application(self.state), access_log=None, shutdown_timeout=0.1)
        await control.setup()
        self._stack.push_async_callback(control.cleanup)
        self._addresses = Addresses(
            http_port=http_port, https_port=https_port, control_port=await _listen(control, self._ports.control)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, cutting whatever still runs."""
        await self._stack.aclose()


def server_context(tls: TlsFiles) -> ssl.SSLContext:
    """Return the TLS settings of a public API: a certificate, and no demand for one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.private_key)
    return context


async def _listen(runner: web.AppRunner, port: int, context: ssl.SSLContext | None = None) -> int:
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, backlog=1024)
    await site.start()
    # Addresses come in the order in which the sites were started.
    listening: int = runner.addresses[-1][1]
    return listening
