"""The embedded servers: real, kept over a kill, and never left behind."""

import asyncio
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import psutil
import pytest

from testkit.errors import TestkitError
from testkit.postgres import EmbeddedPostgres
from testkit.redis import EmbeddedRedis

_STARTER = """
import sys, signal
from pathlib import Path
from testkit.postgres import EmbeddedPostgres
from testkit.redis import EmbeddedRedis
pg, redis = EmbeddedPostgres(Path(sys.argv[1]) / "pg"), EmbeddedRedis(Path(sys.argv[1]) / "redis")
pg.start(); redis.start()
print(pg.pid, redis.pid, flush=True)
signal.pause()
"""


async def test_committed_rows_survive_kill_9_of_the_server(tmp_path: Path) -> None:
    """Committed rows are there after the postmaster was killed and started again."""
    async with EmbeddedPostgres(tmp_path / "pg") as server:
        dsn = await server.create_database("kept")
        connection = await asyncpg.connect(dsn)
        await connection.execute("CREATE TABLE kept (value int)")
        await connection.execute("INSERT INTO kept VALUES (7)")
        await connection.close()
        server.kill9()
        server.start()
        connection = await asyncpg.connect(dsn)
        assert await connection.fetchval("SELECT value FROM kept") == 7
        await connection.close()
    server.destroy()


async def test_a_database_can_be_copied_from_another(tmp_path: Path) -> None:
    """A template's tables are in the copy."""
    async with EmbeddedPostgres(tmp_path / "pg") as server:
        connection = await asyncpg.connect(await server.create_database("original"))
        await connection.execute("CREATE TABLE copied (value int)")
        await connection.close()
        connection = await asyncpg.connect(await server.create_database("copy", template="original"))
        assert await connection.fetchval("SELECT count(*) FROM copied") == 0
        await connection.close()
        with pytest.raises(TestkitError):
            await server.create_database('x"; DROP DATABASE copy')
    server.destroy()


async def test_written_keys_survive_kill_9_of_redis(tmp_path: Path) -> None:
    """What was written is there after a kill, on the same port."""
    async with EmbeddedRedis(tmp_path / "redis", appendfsync="always") as server:
        url = server.url
        server.command("SET", "kept", "7")
        server.kill9()
        server.start()
        assert server.url == url
        assert server.command("GET", "kept") == "7"


async def test_without_an_append_only_file_redis_comes_back_empty(tmp_path: Path) -> None:
    """A store that keeps nothing is what the rebuild tests need."""
    async with EmbeddedRedis(tmp_path / "redis", appendonly=False) as server:
        server.command("SET", "lost", "7")
        server.kill9()
        server.start()
        assert server.info["aof_enabled"] == "0"
        assert server.command("EXISTS", "lost") == "0"


def test_servers_end_when_their_starter_is_killed(tmp_path: Path) -> None:
    """Nothing is left running after kill -9 of the process that started the servers."""
    starter = subprocess.Popen([sys.executable, "-c", _STARTER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    with starter.stdout:
        servers = [psutil.Process(int(pid)) for pid in starter.stdout.readline().split()]
    assert len(servers) == 2
    everything = [each for server in servers for each in (server, *server.children(recursive=True))]
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    _, alive = psutil.wait_procs(everything, timeout=10)
    assert alive == []


def test_data_behind_a_link_goes_with_the_link(tmp_path: Path) -> None:
    """Under root the data may live elsewhere; when its folder is gone, the next server to be made deletes it."""
    first = EmbeddedPostgres(tmp_path / "first" / "pg")
    first.start()
    first.stop()
    data = first.data_dir
    assert data.is_dir()
    shutil.rmtree(tmp_path / "first")
    second = EmbeddedPostgres(tmp_path / "second" / "pg")
    second.start()
    second.destroy()
    assert not data.exists()
    assert not second.data_dir.exists()


def test_a_child_that_fails_tells_why(tmp_path: Path) -> None:
    """The error of a server that does not come up carries the end of its log."""
    broken = EmbeddedRedis(tmp_path / "redis", appendfsync="nonsense")
    with pytest.raises(TestkitError, match="FATAL CONFIG FILE ERROR"):
        broken.start()


async def test_both_fit_in_one_event_loop(tmp_path: Path) -> None:
    """Two servers of a kind run side by side."""
    async with EmbeddedPostgres(tmp_path / "a") as first, EmbeddedPostgres(tmp_path / "b") as second:
        connections = await asyncio.gather(asyncpg.connect(first.dsn()), asyncpg.connect(second.dsn()))
        assert first.pid != second.pid
        for connection in connections:
            await connection.close()
    first.destroy()
    second.destroy()
