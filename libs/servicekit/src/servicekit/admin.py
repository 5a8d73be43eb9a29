"""The admin port of a service: liveness, readiness, metrics. Plain HTTP for probes and scrapers; shows no secret.

GET /healthz   200 while the loop turns
GET /readyz    200 when every check holds, else 503; the body names each check
GET /metrics   Prometheus text format
"""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from servicekit.settings import AdminSettings


class AdminServer:
    """Serves the admin port; an async context manager."""

    def __init__(
        self,
        settings: AdminSettings,
        *,
        readiness: Callable[[], Mapping[str, bool]],
        registry: CollectorRegistry,
    ) -> None:
        """Make the server.

        Args:
            settings: Where to listen.
            readiness: Answers at once whether each named thing that the service needs is there.
            registry: What `/metrics` shows.
        """
        self._settings = settings
        self._readiness = readiness
        self._registry = registry
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        """Start listening; `port` is then the real one."""
        application = web.Application(client_max_size=0)
        application.add_routes(
            [
                web.get("/healthz", self._health),
                web.get("/readyz", self._ready),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        host, _, port = self._settings.listen.rpartition(":")
        site = web.TCPSite(self._runner, host.strip("[]"), int(port))
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"healthy": True})

    async def _ready(self, _request: web.Request) -> web.Response:
        checks = dict(self._readiness())
        return web.json_response({"ready": all(checks.values()), "checks": checks}, status=_status(checks))

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _status(checks: Mapping[str, bool]) -> int:
    return web.HTTPOk.status_code if all(checks.values()) else web.HTTPServiceUnavailable.status_code
