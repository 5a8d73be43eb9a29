"""The stack's own promises, apart from what the services in it do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import psutil
import pytest

from testkit.errors import TestkitError
from testkit.stack.environment import Surroundings, keyvault_environment, metering_environment, router_environment
from testkit.stack.services import Service, ServiceProcess
from testkit.stack.stack import Stack, StackOptions

_BARE = StackOptions(keyvaults=0, meterings=0, routers=0, is_durable=False)
_STARTER = """
import asyncio, signal, sys
from pathlib import Path
from testkit.stack.stack import Stack, StackOptions

async def main():
    options = StackOptions(keyvaults=0, meterings=0, routers=0)
    async with Stack(Path(sys.argv[1]), options=options) as stack:
        print(stack.postgres.pid, stack.redis.pid, flush=True)
        signal.pause()

asyncio.run(main())
"""


async def test_a_second_start_in_the_same_folder_finds_the_data(tmp_path: Path) -> None:
    """Databases and secret files are made once; another stack cannot use the folder meanwhile."""
    async with Stack(tmp_path, options=_BARE) as stack:
        connection = await asyncpg.connect(stack.keyvault_dsn)
        await connection.execute("CREATE TABLE kept (value int)")
        await connection.close()
        stack.redis.command("SET", "kept", "1")
        with pytest.raises(TestkitError, match="another stack runs"):
            await Stack(tmp_path, options=_BARE).start()
        secret = (tmp_path / "root.key").read_text()
    async with Stack(tmp_path, options=_BARE) as stack:
        connection = await asyncpg.connect(stack.keyvault_dsn)
        assert await connection.fetchval("SELECT count(*) FROM kept") == 0
        await connection.close()
        assert stack.redis.command("GET", "kept") == "1"
        assert (tmp_path / "root.key").read_text() == secret
        assert (tmp_path / "root.key").stat().st_mode & 0o077 == 0


def test_nothing_outlives_a_killed_starter(tmp_path: Path) -> None:
    """Kill -9 of the process that holds the stack ends every process of it."""
    starter = subprocess.Popen([sys.executable, "-c", _STARTER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    with starter.stdout:
        starter.stdout.readline()
        children = psutil.Process(starter.pid).children(recursive=True)
    assert len(children) >= 3
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_a_service_that_fails_to_start_says_why(tmp_path: Path) -> None:
    """The error carries the end of the service's log."""
    broken = ServiceProcess(Service.KEYVAULT, replica=0, directory=tmp_path, environment={"PATH": os.environ["PATH"]})
    with pytest.raises(TestkitError, match="ended before it was ready"):
        broken.start()


async def test_each_service_is_told_only_what_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root key is KeyVault's, the answer key Router's, and no provider key of the developer's reaches anyone."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-developer")
    async with Stack(tmp_path, options=_BARE) as stack:
        around = Surroundings(
            keyvault_dsn=stack.keyvault_dsn,
            metering_dsn=stack.metering_dsn,
            redis_url=stack.redis.url,
            root_key_file=tmp_path / "root.key",
            answer_key_file=tmp_path / "answer.key",
            ca_file=stack.ca.ca_file,
            allowed_hosts=stack.simulator.hosts,
            extra={"BYOK_ROUTER_X": "1"},
        )
        tls = stack.client_tls("platform")
    keyvault = keyvault_environment(tls, around)
    metering = metering_environment(tls, around)
    router = router_environment(tls, around)
    holders = [name for name, env in {"k": keyvault, "m": metering, "r": router}.items() if "root.key" in repr(env)]
    assert holders == ["k"]
    assert "answer.key" not in repr(keyvault) + repr(metering)
    assert "sk-of-the-developer" not in repr((keyvault, metering, router))
    assert router["BYOK_ROUTER_X"] == "1"
    assert "BYOK_ROUTER_X" not in metering
