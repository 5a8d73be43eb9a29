"""The whole process, wired as in production, with nobody to talk to."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import grpc
import pytest

from byok.router.v1 import operation_result_pb2, operation_service_pb2
from byok.router.v1.operation_service_pb2_grpc import OperationServiceStub
from router.app import serve
from router.settings import KeyVaultSettings, MeteringSettings, Settings
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.ids import new_uuid7
from servicekit.metrics import Metrics
from servicekit.settings import ServerSettings, SettingsError, TlsSettings
from servicekit.wire import error_from_rpc
from testkit.pki import ThrowawayCa
from testkit.ports import free_port


def settings_of(folder: Path, *, answer_key: str = "ab" * 32) -> tuple[Settings, ThrowawayCa]:
    """Return settings whose peers listen nowhere."""
    ca = ThrowawayCa(folder)
    files = ca.issue("router")
    key_file = folder / "answer.key"
    key_file.write_text(answer_key)
    settings = Settings(
        server=ServerSettings(
            tls=TlsSettings(certificate_file=files.certificate, private_key_file=files.private_key, ca_file=files.ca)
        ),
        keyvault=KeyVaultSettings(target=f"ipv4:127.0.0.1:{free_port()}"),
        metering=MeteringSettings(target=f"ipv4:127.0.0.1:{free_port()}"),
        answer_key_file=key_file,
    )
    return settings, ca


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[int, int]]:
    """Serve until the block ends; give the ports."""
    stop = asyncio.Event()
    ports: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
    serving = asyncio.create_task(
        serve(settings, stop, Metrics("router"), announce=lambda *both: ports.put_nowait(both))
    )
    announced = asyncio.create_task(ports.get())
    waited: set[asyncio.Task[object]] = {serving, announced}
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    try:
        if not serving.done():
            yield announced.result()
    finally:
        announced.cancel()
        stop.set()
        await serving


async def test_without_its_peers_the_router_holds_everything(tmp_path: Path) -> None:
    """It starts, says that it is not ready, answers HOLD with a typed error, and drains at once."""
    settings, ca = settings_of(tmp_path)
    async with running(settings) as (port, admin_port):
        async with aiohttp.ClientSession(f"http://127.0.0.1:{admin_port}") as session:
            async with session.get("/readyz") as response:
                assert response.status == 503
                assert (await response.json())["checks"] == {"serving": True, "keyvault_watch": False}
            async with session.get("/metrics") as response:
                assert "router_authority_contact 0.0" in await response.text()
        async with open_channel(f"localhost:{port}", ca.issue("platform")) as channel:
            request = operation_service_pb2.EvaluateGuardrailRequest(content="x", policy_text="y")
            request.context.request_id = new_uuid7(SystemClock().now())
            request.context.agent_id = "agent-1"
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await OperationServiceStub(channel).EvaluateGuardrail(request)
        refused = error_from_rpc(failed.value)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SUITE_UNAVAILABLE")
        failure = refused.detail(operation_result_pb2.OperationFailure)
        assert failure is not None
        assert failure.disposition == operation_result_pb2.DISPOSITION_HOLD
        assert failure.retryable
        begin = time.perf_counter()
    assert time.perf_counter() - begin < settings.server.drain_grace.total_seconds()


@pytest.mark.parametrize("key", ["", "zz" * 32, "ab" * 31, "ab" * 33])
async def test_an_answer_key_that_cannot_be_used_stops_the_start(tmp_path: Path, key: str) -> None:
    """The process does not start, and says nothing of what is in the file."""
    settings, _ = settings_of(tmp_path, answer_key=key)
    with pytest.raises(SettingsError) as refused:
        async with running(settings):
            raise AssertionError("it started")
    assert not key or key not in str(refused.value)
