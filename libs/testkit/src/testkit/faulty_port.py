"""A line to a server on a TCP port, as faulty as one to a unix socket can be."""

import asyncio
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from typing_extensions import override

from testkit.faulty_line import FaultyLine


class FaultyPort(FaultyLine):
    """Stands before one port of the loopback address; `port` is the one before it."""

    def __init__(self, target_port: int) -> None:
        """Lead to the port `target_port`."""
        super().__init__(Path(tempfile.gettempdir()))
        self._target_port = target_port
        self.port = 0

    @override
    async def __aenter__(self) -> Self:
        self.restore()
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @override
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._carrying, return_exceptions=True)
        self.directory.rmdir()

    @override
    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._target_port)
