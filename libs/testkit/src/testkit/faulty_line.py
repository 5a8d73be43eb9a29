"""A line to a server on a unix socket that can be slow, fall silent, lose answers or be cut, while both ends live.

Knows no protocol: it carries bytes. What a line that hangs does to a client, no fault inside the server can show.
"""

import asyncio
import contextlib
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 1 << 16


class FaultyLine:
    """Stands before one socket; what is set here holds for connections that are open, too."""

    def __init__(self, target: Path) -> None:
        """Lead to the socket `target`; the socket before it has the same name, in `directory`."""
        self._target = target
        self.directory = Path(tempfile.mkdtemp(prefix="byok-line-"))
        self.delay_seconds = 0.0
        self._requests_pass = asyncio.Event()
        self._answers_pass = asyncio.Event()
        self._is_cut = False
        self._carrying: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Start to carry."""
        self.restore()
        self._server = await asyncio.start_unix_server(self._connect, self.directory / self._target.name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut the line for good."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._carrying, return_exceptions=True)
        (self.directory / self._target.name).unlink(missing_ok=True)
        self.directory.rmdir()

    def restore(self) -> None:
        """Carry everything at once again."""
        self.delay_seconds = 0.0
        self._is_cut = False
        self._requests_pass.set()
        self._answers_pass.set()

    def slow_down(self, seconds: float) -> None:
        """Carry everything later, each way."""
        self.delay_seconds = seconds

    def fall_silent(self) -> None:
        """Carry nothing, either way; both ends see an open connection."""
        self._requests_pass.clear()
        self._answers_pass.clear()

    def lose_answers(self) -> None:
        """Carry requests, and no answer: the server does what its client never hears of."""
        self._answers_pass.clear()

    def cut(self) -> None:
        """End every connection, and each that is tried."""
        self._is_cut = True
        for task in self._carrying:
            task.cancel()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if self._is_cut or task is None:
            writer.close()
            return
        self._carrying.add(task)
        try:
            await self._carry(reader, writer)
        except (OSError, asyncio.CancelledError):
            # Which end went first is theirs to say; the line says nothing.
            pass
        finally:
            self._carrying.discard(task)
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await self._reach()
        ways = [
            asyncio.ensure_future(self._pass_on(reader, requests, self._requests_pass)),
            asyncio.ensure_future(self._pass_on(answers, writer, self._answers_pass)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            with contextlib.suppress(OSError):
                await asyncio.gather(*ways, return_exceptions=True)
            requests.close()

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self._target)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, passes: asyncio.Event) -> None:
        while chunk := await source.read(_CHUNK_BYTES):
            await asyncio.sleep(self.delay_seconds)
            await passes.wait()
            sink.write(chunk)
            await sink.drain()
