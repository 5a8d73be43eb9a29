"""The processes around what is measured: load drivers and the canned provider. None outlives the bench."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from bench.canned import IN_ANSWER, PROVIDER_REQUEST
from bench.errors import BenchError
from bench.jobs import Grpc, HttpJob, Job, Load, LoadResult, Tls
from bench.machine import Cores, pin
from servicekit.identity import TlsFiles
from testkit.simulator.addresses import Addresses
from testkit.simulator.client import SimulatorControl
from testkit.simulator.process import SimulatorProcess

_START_SECONDS: Final = 30
_END_SECONDS: Final = 10
_GRACE_SECONDS: Final = 90
"""How much longer than its load a driver may take: calls under way have their own deadline."""
_LINE_BYTES_MAX: Final = 1 << 20


class Driver:
    """A load driver that is connected and waits for load."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Take a process that has been given its job."""
        self._process = process

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    async def run(self, *, in_flight: int, seconds: float) -> LoadResult:
        """Run one stretch of load.

        Raises:
            BenchError: a call failed; a figure with failures in it is no figure.
        """
        line = msgspec.json.encode(Load(in_flight=in_flight, seconds=seconds))
        answer = await _ask(self._process, line, timeout_seconds=seconds + _GRACE_SECONDS)
        result = msgspec.json.decode(answer, type=LoadResult)
        if result.errors or not result.calls:
            raise BenchError(f"{sum(result.errors.values())} calls failed, {result.calls} did not: {result.errors}")
        return result


@dataclass(frozen=True)
class Upstream:
    """The canned provider that all contestants call, running: testkit's simulator at its fastest."""

    addresses: Addresses
    ca: Path
    pid: int

    @property
    def base_url(self) -> str:
        """Return the base URL of OpenAI's stand-in, as a provider key has it."""
        return self.addresses.base_url("openai")

    async def set_delay(self, milliseconds: int) -> None:
        """Make every later answer wait."""
        async with SimulatorControl(self.addresses) as control:
            await control.set_latency(milliseconds / 1000)

    async def calls(self) -> int:
        """Return how many calls it has answered."""
        async with SimulatorControl(self.addresses) as control:
            return (await control.totals()).calls


@asynccontextmanager
async def open_driver(job: Job, cores: Cores) -> AsyncIterator[Driver]:
    """Start a driver, on the cores that are not measured, and give it its job."""
    async with _process("bench.driver", [cores.others_text]) as process:
        await _ask(process, msgspec.json.encode(job), timeout_seconds=_START_SECONDS)
        yield Driver(process)


@asynccontextmanager
async def open_upstream(folder: Path, tls: TlsFiles, cores: Cores) -> AsyncIterator[Upstream]:
    """Start the canned provider, on the cores that are not measured."""
    simulator = SimulatorProcess(folder, tls=tls, is_fast=True)
    addresses = simulator.start()
    try:
        pin([simulator.process.pid], cores.others)
        yield Upstream(addresses, tls.ca, simulator.process.pid)
    finally:
        simulator.stop()


def grpc_of(port: int, tls: TlsFiles) -> Grpc:
    """Say to a driver where a server is and who it is to be."""
    return Grpc(port=port, tls=Tls(certificate=str(tls.certificate), private_key=str(tls.private_key), ca=str(tls.ca)))


def direct_job(upstream: Upstream) -> HttpJob:
    """Say to a driver that it should call the provider without anything between."""
    base = urlsplit(upstream.base_url)
    assert base.port is not None
    return HttpJob(
        port=base.port,
        path=f"{base.path}/chat/completions",
        headers={"Authorization": "Bearer sk-proj-bench-direct-0000"},
        body=PROVIDER_REQUEST,
        must_contain=IN_ANSWER,
        ca=str(upstream.ca),
    )


@asynccontextmanager
async def _process(module: str, arguments: Sequence[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES_MAX,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _END_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _ask(process: asyncio.subprocess.Process, line: bytes, *, timeout_seconds: float) -> bytes:
    assert process.stdin is not None
    process.stdin.write(line + b"\n")
    await process.stdin.drain()
    return await _read(process, timeout_seconds=timeout_seconds)


async def _read(process: asyncio.subprocess.Process, *, timeout_seconds: float) -> bytes:
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), timeout_seconds)
    except TimeoutError:
        raise BenchError(f"a companion process said nothing for {timeout_seconds:.0f} s") from None
    if not line:
        raise BenchError("a companion process ended early; what it wrote on standard error says why")
    return line
