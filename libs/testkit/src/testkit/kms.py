"""AWS KMS as moto fakes it, in a process of its own."""

import functools
import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import botocore.session
from aiohttp import web

from testkit.errors import TestkitError
from testkit.ports import free_port, is_listening
from testkit.processes import ChildProcess, Command

_START_SECONDS = 60
_START_ATTEMPTS = 5
_CONTENT_TYPE = "application/x-amz-json-1.1"
REGION = "eu-central-1"
# What moto takes anything for; a test looks for it where no secret may be.
ACCESS_KEY_ID = "AKIACANARY0000000000"
SECRET_ACCESS_KEY = "canary-secret-access-key-7731"


class EmbeddedKms:
    """One server on a loopback port, which stays the same over restarts; a restart forgets all keys."""

    def __init__(self, log_file: Path) -> None:
        """Log to `log_file`."""
        self._log_file = log_file
        self._port: int | None = None
        self._process: ChildProcess | None = None

    @property
    def endpoint_url(self) -> str:
        """Return where it answers."""
        if self._port is None:
            message = "KMS was not started"
            raise TestkitError(message)
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the server, and wait until it answers.

        Raises:
            TestkitError: it did not come up; the message carries the end of its log.
        """
        for attempt in range(_START_ATTEMPTS):
            port = self._port if self._port is not None else free_port()
            process = ChildProcess(
                Command(
                    arguments=[sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                    log_file=self._log_file,
                )
            )
            process.start()
            try:
                process.wait_until(functools.partial(is_listening, port), timeout_seconds=_START_SECONDS)
            except TestkitError:
                # Somebody else may have bound the port between looking and binding.
                if attempt == _START_ATTEMPTS - 1:
                    raise
            else:
                self._port, self._process = port, process
                return

    def stop(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.kill9()

    def make_key(self, *, is_multi_region: bool = False) -> str:
        """Make a symmetric key, and return its ARN."""
        answer = self.client().create_key(MultiRegion=is_multi_region)
        return str(answer["KeyMetadata"]["Arn"])

    def front(self) -> "KmsFront":
        """Return a front before this server, which can be shut and told to answer with errors."""
        return KmsFront(self)

    def client(self) -> Any:
        """Return a client with credentials of its own."""
        return botocore.session.Session().create_client(
            "kms",
            region_name=REGION,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=ACCESS_KEY_ID,
            aws_secret_access_key=SECRET_ACCESS_KEY,
        )


class KmsFront:
    """A front before a server that answers some requests with errors of AWS itself, which moto does not make."""

    def __init__(self, server: EmbeddedKms) -> None:
        """Hand on to `server` what is not answered here."""
        self._server = server
        self._runner: web.AppRunner | None = None
        self._port = 0
        self.faults: list[tuple[int, str]] = []
        """Status and code of the answers to the next requests."""
        self.said_key_arn: str | None = None
        """The key that answers name, in place of the one that was used."""
        self.requests: list[tuple[str, dict[str, Any]]] = []
        """Operations that were asked for, and with what."""

    @property
    def endpoint_url(self) -> str:
        """Return where it answers."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        """Start; after a stop, on the old port."""
        app = web.Application()
        app.router.add_post("/", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append((request.headers["X-Amz-Target"].partition(".")[2], json.loads(body)))
        if self.faults:
            status, code = self.faults.pop(0)
            return web.json_response({"__type": code, "message": "as told"}, status=status)
        names = ("X-Amz-Target", "X-Amz-Date", "Authorization", "Content-Type")
        headers = {name: request.headers[name] for name in names}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self._server.endpoint_url, data=body, headers=headers) as answer,
        ):
            content = json.loads(await answer.read())
            if self.said_key_arn is not None:
                content["KeyId"] = self.said_key_arn
            return web.json_response(content, status=answer.status, content_type=_CONTENT_TYPE)
