"""`make serve` does what it prints: the call to paste works, and stopping it leaves nothing behind."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

# Of the call to paste, which is the last thing printed.
_LAST_OPTION = b"--base-url"
_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start what `make serve` starts; end it also when a test fails half-way."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "testkit.stack", "--directory", str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    yield process
    if process.returncode is None:
        process.terminate()
        await process.communicate()


@pytest.mark.timeout(120)
async def test_the_printed_call_works_and_nothing_is_left_behind(serve: asyncio.subprocess.Process) -> None:
    """Start, paste the printed call into a shell, stop with SIGINT."""
    assert serve.stdout is not None
    printed = (
        await asyncio.wait_for(serve.stdout.readuntil(_LAST_OPTION), 100) + await serve.stdout.readline()
    ).decode()
    for service in ("keyvault", "metering", "router"):
        assert re.search(rf"{service} +localhost:\d+", printed)
    call = printed[printed.index("printf ") :]
    pasted = await asyncio.create_subprocess_exec(
        "bash", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=_ROOT
    )
    answer, _ = await pasted.communicate(call.encode())
    assert pasted.returncode == 0, answer
    children = psutil.Process(serve.pid).children(recursive=True)
    assert len(children) >= 6
    serve.send_signal(signal.SIGINT)
    rest, _ = await serve.communicate()
    assert b"stopping" in rest
    assert serve.returncode == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
