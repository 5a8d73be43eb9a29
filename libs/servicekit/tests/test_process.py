"""A service as a real process: ready line, signals, what it refuses to leak, and the handshakes it counts."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import psutil
import pytest

from byok.keyvault.v1 import lease_service_pb2 as pb
from byok.keyvault.v1 import lease_service_pb2_grpc as rpc
from servicekit.channels import open_channel
from servicekit.identity import TlsFiles
from testkit.pki import ThrowawayCa

_SAMPLE = Path(__file__).parent / "sample_service.py"
_CANARY = b"sk-canary-0123456789abcdef"


@dataclass
class Running:
    """A sample service that has said it is ready."""

    process: asyncio.subprocess.Process
    ports: dict[str, Any]
    ca: ThrowawayCa
    files: TlsFiles

    @property
    def target(self) -> str:
        return f"localhost:{self.ports['grpc_port']}"

    async def stop(self) -> tuple[int | None, list[dict[str, Any]]]:
        """Ask it to stop; return its exit status and what it logged."""
        self.process.send_signal(signal.SIGTERM)
        output, errors = await self.process.communicate()
        assert output == b""
        assert _CANARY not in errors
        return self.process.returncode, [json.loads(line) for line in errors.splitlines()]

    async def metric(self, start: str) -> list[str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.ports['admin_port']}/metrics") as answer,
        ):
            return [line for line in (await answer.text()).splitlines() if line.startswith(start)]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """Start the sample service and stop it after the test."""
    ca = ThrowawayCa(tmp_path)
    files = ca.issue("keyvault")
    environment = {
        "PATH": os.defpath,
        "BYOK_SAMPLE_SERVER__TLS__CERTIFICATE_FILE": str(files.certificate),
        "BYOK_SAMPLE_SERVER__TLS__PRIVATE_KEY_FILE": str(files.private_key),
        "BYOK_SAMPLE_SERVER__TLS__CA_FILE": str(files.ca),
        "BYOK_SAMPLE_TELEMETRY__LOG_LEVEL": "debug",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(_SAMPLE),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            ready = json.loads(await process.stdout.readline())
        assert ready["event"] == "ready"
        yield Running(process, ready, ca, files)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_it_says_that_it_is_ready_serves_and_drains(running: Running) -> None:
    """SIGTERM drains: hooks run, the exit status is 0, and every line on standard error is JSON."""
    async with open_channel(running.target, running.ca.issue("router")) as channel:
        answer = await rpc.LeaseServiceStub(channel).AcquireLeases(pb.AcquireLeasesRequest(), timeout=10)
        assert answer.deployment == "sample"
    status, events = await running.stop()
    assert status == 0
    assert "sample.settled" in {event["event"] for event in events}


async def test_a_panic_with_a_key_in_it_leaves_no_key_in_the_log(running: Running) -> None:
    """Neither an exception nor a line of gRPC's core takes the canary out of the process."""
    async with open_channel(running.target, running.ca.issue("router")) as channel:
        stub = rpc.LeaseServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.AcquireLeases(pb.AcquireLeasesRequest(holder="panic"), timeout=10)
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        await stub.AcquireLeases(pb.AcquireLeasesRequest(holder="core"), timeout=10)
    _status, events = await running.stop()
    assert any("RuntimeError" in event.get("exception", "") for event in events)
    assert any("a line of the core with [redacted]" in event.get("text", "") for event in events)


async def test_handshakes_that_fail_are_counted_by_cause(running: Running, tmp_path: Path) -> None:
    """No certificate, a foreign CA, and no TLS at all: each is a count in the metrics."""
    foreign = ThrowawayCa(tmp_path / "foreign").issue("router")
    ca = running.files.ca.read_bytes()
    nameless = grpc.ssl_channel_credentials(ca)
    stranger = grpc.ssl_channel_credentials(ca, foreign.private_key.read_bytes(), foreign.certificate.read_bytes())
    for channel in (
        grpc.aio.secure_channel(running.target, nameless),
        grpc.aio.secure_channel(running.target, stranger),
        grpc.aio.insecure_channel(running.target),
    ):
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await rpc.LeaseServiceStub(channel).AcquireLeases(pb.AcquireLeasesRequest(), timeout=5)
    expected = {"PEER_DID_NOT_RETURN_A_CERTIFICATE", "CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER"}
    async with asyncio.timeout(10):
        while not expected <= _causes(await running.metric("sample_grpc_handshake_failures_total{")):
            await asyncio.sleep(0)
    assert float((await running.metric("sample_grpc_handshakes_started_total "))[0].split()[1]) >= 3


async def test_its_memory_is_not_for_others(running: Running) -> None:
    """Core dumps are off."""
    assert psutil.Process(running.process.pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)


async def test_the_kernel_is_told_to_dump_nothing() -> None:
    """Nor may another process of the same user read its memory. Asked in a process of its own: it is not undone."""
    # 3 is PR_GET_DUMPABLE, see prctl(2).
    source = (
        "import ctypes; from servicekit import process; ask = lambda: ctypes.CDLL(None).prctl(3, 0, 0, 0, 0); "
        "before = ask(); process._refuse_dumps(); print(before, ask())"
    )
    asked = await asyncio.create_subprocess_exec(sys.executable, "-c", source, stdout=asyncio.subprocess.PIPE)
    out, _ = await asked.communicate()
    assert out.split() == [b"1", b"0"]


async def test_its_threads_let_each_other_finish(running: Running) -> None:
    """Every thread, also those that gRPC starts later: it is inherited, and the event loop gains nothing alone."""
    pid = running.process.pid
    policies = {os.sched_getscheduler(thread.id) for thread in psutil.Process(pid).threads()}
    assert policies == {os.SCHED_BATCH}


async def test_a_policy_or_certificate_that_cannot_be_used_does_not_start(tmp_path: Path) -> None:
    """A service without a usable identity ends at once, with a word and a status."""
    environment = {"PATH": os.defpath} | {
        f"BYOK_SAMPLE_SERVER__TLS__{name}_FILE": str(tmp_path / "missing.pem")
        for name in ("CERTIFICATE", "PRIVATE_KEY", "CA")
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(_SAMPLE), env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode != 0
    assert output == b""
    event = json.loads(errors)
    assert event["event"] == "process.failed"
    assert "cannot be read" in event["exception"]


def _causes(lines: list[str]) -> set[str]:
    return {line.split('"')[1] for line in lines}
