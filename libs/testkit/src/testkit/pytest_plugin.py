"""Fixtures that every test of the suite may ask for.

Register with `pytest_plugins = ["testkit.pytest_plugin"]` in the root conftest. Servers start when the first test asks
for one and are shared by the session; databases are per test.
"""

import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis.asyncio
from _pytest.terminal import TerminalReporter

from testkit import figures
from testkit.fake_clock import FakeClock
from testkit.kms import EmbeddedKms
from testkit.pki import ThrowawayCa
from testkit.ports import free_port
from testkit.postgres import EmbeddedPostgres, create_database, drop_database, dsn_of_database
from testkit.redis import EmbeddedRedis
from testkit.settings import TestkitSettings
from testkit.simulator.client import SimulatorControl
from testkit.softhsm import SoftHsm
from testkit.stack.customer import Customer, Suite
from testkit.stack.stack import Stack, StackOptions
from testkit.vault.admin import VaultAdmin
from testkit.vault.server import FakeVault


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what a worker has to show to the process that prints."""
    figures.send_to_controller(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker has to show. The hook is there in runs of several processes only."""
    figures.take_from_worker(node.config, getattr(node, "workeroutput", {}))


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """Print what was measured."""
    figures.print_all(config, terminalreporter)


@pytest.fixture(scope="session")
def testkit_dir() -> Iterator[Path]:
    """Return a folder of this session's own, removed at its end."""
    directory = Path(tempfile.mkdtemp(prefix="byok-test-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(testkit_dir: Path) -> Iterator[str]:
    """Return the DSN of a server on which databases may be created, the one in BYOK_TEST_POSTGRES_DSN if set."""
    given = TestkitSettings().postgres_dsn
    if given is not None:
        yield given
        return
    server = EmbeddedPostgres(testkit_dir / "postgres")
    server.start()
    yield server.dsn()
    server.destroy()


@pytest.fixture
async def postgres_database(postgres_server: str) -> AsyncIterator[str]:
    """Return the DSN of an empty database for this test alone."""
    name = f"test_{uuid.uuid4().hex}"
    await create_database(postgres_server, name)
    yield dsn_of_database(postgres_server, name)
    await drop_database(postgres_server, name)


@pytest.fixture
async def make_postgres_database(postgres_server: str) -> AsyncIterator[Callable[..., object]]:
    """Return a coroutine function that makes databases, `template=` naming one to copy, dropped after the test."""
    made: list[str] = []

    async def make(*, template: str | None = None) -> str:
        name = f"test_{uuid.uuid4().hex}"
        await create_database(postgres_server, name, template=template)
        made.append(name)
        return dsn_of_database(postgres_server, name)

    yield make
    for name in made:
        await drop_database(postgres_server, name)


@pytest.fixture(scope="session")
def redis_server(testkit_dir: Path) -> Iterator[str]:
    """Return the URL of a server that may be flushed, the one in BYOK_TEST_REDIS_URL if set."""
    given = TestkitSettings().redis_url
    if given is not None:
        yield given
        return
    server = EmbeddedRedis(testkit_dir / "redis")
    server.start()
    yield server.url
    server.destroy()


@pytest.fixture
async def redis_database(redis_server: str) -> str:
    """Return the URL of the session's server, emptied."""
    async with redis.asyncio.from_url(redis_server) as client:
        await client.flushall()
    return redis_server


@pytest.fixture(scope="session")
def kms_server(testkit_dir: Path) -> Iterator[EmbeddedKms]:
    """Return a stand-in for AWS KMS."""
    server = EmbeddedKms(testkit_dir / "kms.log")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def softhsm(testkit_dir: Path) -> SoftHsm:
    """Return the folder of PKCS#11 tokens of this process; it has none yet."""
    tokens = SoftHsm(testkit_dir / "softhsm", pin="canary-user-pin-5519")
    tokens.start()
    return tokens


@pytest.fixture
async def fake_vault() -> AsyncIterator[FakeVault]:
    """Return a stand-in for Vault, for this test alone."""
    async with FakeVault() as server:
        yield server


@pytest.fixture
def vault_admin(fake_vault: FakeVault) -> VaultAdmin:
    """Return somebody who may do everything: on the server in BYOK_TEST_VAULT_ADDR if set, else on a stand-in."""
    settings = TestkitSettings()
    if settings.vault_addr is not None and settings.vault_token is not None:
        return VaultAdmin(settings.vault_addr, settings.vault_token)
    return VaultAdmin(fake_vault.address, fake_vault.token)


@pytest.fixture(scope="session")
def throwaway_ca(testkit_dir: Path) -> ThrowawayCa:
    """Return a certificate authority for this session."""
    return ThrowawayCa(testkit_dir / "ca")


@pytest.fixture
def fake_clock() -> FakeClock:
    """Return a clock that moves only when told to."""
    return FakeClock()


@pytest.fixture
def make_free_port() -> Callable[[], int]:
    """Return the function that finds a free TCP port."""
    return free_port


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def suite_stack(testkit_dir: Path) -> AsyncIterator[Stack]:
    """Return the whole suite as processes, shared by all tests that do not break it."""
    async with Stack(testkit_dir / "stack", options=StackOptions(is_durable=False, is_kept=False)) as stack:
        yield stack


@pytest.fixture
async def suite(suite_stack: Stack) -> AsyncIterator[Suite]:
    """Return stubs of the shared stack's services."""
    async with Suite(suite_stack) as stubs:
        yield stubs


@pytest.fixture
async def simulator_control(suite_stack: Stack) -> AsyncIterator[SimulatorControl]:
    """Return the control of the shared stack's simulator; faults that a test leaves behind are withdrawn."""
    async with SimulatorControl(suite_stack.simulator) as control:
        yield control
        await control.clear_faults()
        await control.set_latency(0)


@pytest.fixture
def customer(suite: Suite) -> Customer:
    """Return an owner with an agent that nobody else uses; nothing is registered yet."""
    return Customer(suite)
