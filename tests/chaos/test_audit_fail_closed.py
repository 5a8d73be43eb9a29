"""The audit log fails closed: whatever Postgres does, no secret leaves without its entry, and all of it ends by itself.

Each fault is a real one, against a Postgres process of this file's own, while Router processes lease all the time. A
disk that is full is stood in for by RLIMIT_FSIZE, under which the server is started: once the log's table has reached
it, the kernel refuses the next block, where a full disk would.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg
import grpc
import psutil
import pytest
from pydantic import SecretStr

from byok.keyvault.v1 import lease_service_pb2
from keyvault.adapters.postgres.schema import migrate
from keyvault.domain.audit_log import EntryKind, decode_leaf
from keyvault.settings import PostgresSettings, RevocationSettings, RootKeySettings, Settings
from servicekit.settings import ServerSettings, TlsSettings
from servicekit.wire import error_from_rpc
from services.keyvault.tests.integration.vault import SECRET, Vault, agent_item, new_id
from testkit.faulty_line import FaultyLine
from testkit.postgres import EmbeddedPostgres
from testkit.settings import TestkitSettings
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from services.keyvault.tests.integration.vault import RouterProcess
    from testkit.pki import ThrowawayCa

pytestmark = pytest.mark.chaos

_ROUTERS: Final = 4
_DEADLINE_SECONDS: Final = 3.0
_GRACE_SECONDS: Final = 0.5
"""How long after its deadline the machine, which is busy, may take to hand an answer over."""
_STATEMENT_TIMEOUT: Final = timedelta(seconds=1)
_FAULT_SECONDS: Final = 2.5
_FILE_BYTES_MAX: Final = 8 << 20
_FILL: Final = (
    "INSERT INTO audit_entries (audit_index, kind, subject, leaf, leaf_hash) "
    "SELECT $1 - n, 104, '', convert_to(repeat('x', $3), 'UTF8'), sha256('x') FROM generate_series(0, $2 - 1) AS n"
)


@dataclass
class Leasing:
    """What Router processes asked for, and what came back."""

    leased: set[str] = field(default_factory=set)
    refused: list[tuple[str, str]] = field(default_factory=list)
    seconds_max: float = 0.0

    async def lease(self, router: RouterProcess) -> bool:
        """Lease once, and tell whether a secret came; what is refused is kept."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            response = await router.leases.AcquireLeases(router.request(agent_item()), timeout=_DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            refusal = error_from_rpc(error)
            self.refused.append((refusal.code.name, refusal.reason))
            return False
        finally:
            self.seconds_max = max(self.seconds_max, loop.time() - started)
        (opened,) = router.open(response)
        assert opened.secret == SECRET
        self.leased.add(response.results[0].lease.lease_id)
        return True

    async def go_on(self, router: RouterProcess) -> None:
        """Lease for as long as this is not cancelled."""
        while True:
            if not await self.lease(router):
                await asyncio.sleep(0.05)


@dataclass(frozen=True)
class Stage:
    """A Postgres, the line to it, and a KeyVault on both."""

    server: EmbeddedPostgres
    line: FaultyLine
    vault: Vault

    def processes(self) -> list[psutil.Process]:
        """Return the postmaster and its children."""
        postmaster = psutil.Process(self.server.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every process of the server."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    async def set_read_only(self, *, is_read_only: bool) -> None:
        """Make the database read-only as a failover does: who is connected is disconnected, and may come back."""
        name = self.vault.dsn.rpartition("/")[2].partition("?")[0]
        other = await asyncpg.connect(self.server.dsn())
        await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {is_read_only}")
        if is_read_only:
            await other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        await other.close()

    async def fill(self) -> None:
        """Fill the log's table to the last block that it may have."""
        await self.vault.forge("ALTER TABLE audit_entries ALTER leaf SET STORAGE PLAIN")
        position = -1
        # Smaller rows fill what the larger ones left of their pages.
        for size in (7_000, 700, 100):
            for rows in (100, 1):
                with contextlib.suppress(asyncpg.PostgresError):
                    while True:
                        await self.vault.forge(_FILL, position, rows, size)
                        position -= rows

    async def free(self) -> None:
        """Make room again, as an operator does."""
        await self.vault.forge("DELETE FROM audit_entries WHERE audit_index < 0")
        await self.vault.forge("VACUUM audit_entries")

    async def logged_leases(self) -> set[str]:
        """Return the ids of all leases that the log has."""
        rows = await self.vault.sql("SELECT leaf FROM audit_entries WHERE kind = $1", int(EntryKind.LEASE_GRANTED))
        return {dict(decode_leaf(row["leaf"]).details)["lease_id"] for row in rows}

    async def logged_refusals(self) -> int:
        """Return how many refusals of callers the log has."""
        query = "SELECT count(*) FROM audit_entries WHERE kind = $1"
        return int((await self.vault.sql(query, int(EntryKind.CALLER_REFUSED)))[0]["count"])


@pytest.fixture(scope="module")
def server(testkit_dir: Path) -> Iterator[EmbeddedPostgres]:
    """Return a Postgres that this file may break."""
    postgres = EmbeddedPostgres(testkit_dir / "postgres-to-break")
    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES_MAX, most))
    try:
        postgres.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))
    yield postgres
    postgres.destroy()


@pytest.fixture
async def stage(server: EmbeddedPostgres, throwaway_ca: ThrowawayCa, tmp_path: Path) -> AsyncIterator[Stage]:
    """Return a running KeyVault that reaches its database by a line of its own."""
    name = f"test_{uuid.uuid4().hex}"
    direct = await server.create_database(name)
    await migrate(direct)
    socket = Path(direct.rpartition("host=")[2].replace("%2F", "/")) / ".s.PGSQL.5432"
    root_key = tmp_path / "root.key"
    root_key.write_text("5f" * 32)
    root_key.chmod(0o400)
    tls = throwaway_ca.issue("keyvault", uri="spiffe://byok.local/ns/byok/sa/keyvault")
    async with FaultyLine(socket) as line:
        settings = Settings(
            server=ServerSettings(
                tls=TlsSettings(certificate_file=tls.certificate, private_key_file=tls.private_key, ca_file=tls.ca),
                drain_grace=timedelta(seconds=2),
            ),
            postgres=PostgresSettings(
                dsn=SecretStr(f"postgresql://postgres@/{name}?host={line.directory}"),
                pool_max=4,
                connect_timeout=_STATEMENT_TIMEOUT,
                statement_timeout=_STATEMENT_TIMEOUT,
            ),
            root_key=RootKeySettings(file=root_key),
            deployment="test",
            revocation=RevocationSettings(partition_bound=timedelta(seconds=1)),
        )
        async with Vault(settings, throwaway_ca, direct).running() as vault:
            await vault.bind()
            await vault.working_key()
            yield Stage(server, line, vault)
    await server.drop_database(name)


@contextlib.asynccontextmanager
async def slow(stage: Stage) -> AsyncIterator[None]:
    """Every message takes longer than a statement may."""
    stage.line.slow_down(_STATEMENT_TIMEOUT.total_seconds())
    yield
    stage.line.restore()


@contextlib.asynccontextmanager
async def silent(stage: Stage) -> AsyncIterator[None]:
    """Nothing arrives, either way, on connections that stay open."""
    stage.line.fall_silent()
    yield
    stage.line.restore()


@contextlib.asynccontextmanager
async def answers_lost(stage: Stage) -> AsyncIterator[None]:
    """What is appended is committed, and nobody hears of it."""
    stage.line.lose_answers()
    yield
    stage.line.restore()


@contextlib.asynccontextmanager
async def cut(stage: Stage) -> AsyncIterator[None]:
    """Every connection ends, and none can be made."""
    stage.line.cut()
    yield
    stage.line.restore()


@contextlib.asynccontextmanager
async def hanging(stage: Stage) -> AsyncIterator[None]:
    """Every process of the server stands still, with the locks that it holds."""
    stage.signal_all(signal.SIGSTOP)
    yield
    stage.signal_all(signal.SIGCONT)


@contextlib.asynccontextmanager
async def full(stage: Stage) -> AsyncIterator[None]:
    """No table can grow."""
    await stage.fill()
    yield
    await stage.free()


@contextlib.asynccontextmanager
async def read_only(stage: Stage) -> AsyncIterator[None]:
    """Nothing can be written, as on a standby, and sessions begun meanwhile stay so."""
    await stage.set_read_only(is_read_only=True)
    yield
    await stage.set_read_only(is_read_only=False)


@contextlib.asynccontextmanager
async def killed(stage: Stage) -> AsyncIterator[None]:
    """The server is killed, and starts again later."""
    stage.server.kill9()
    yield
    stage.server.start()


# The rest of them take the same ways through the service, and run in `make chaos`.
FAULTS: Final = (
    (silent, full, read_only, killed)
    if TestkitSettings().chaos_rounds == 1
    else (slow, silent, answers_lost, cut, hanging, full, read_only, killed)
)


async def refused_caller(vault: Vault) -> None:
    """Let the edge ask for a lease, which it may not."""
    leases = await vault.leases("edge")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await leases.AcquireLeases(lease_service_pb2.AcquireLeasesRequest(holder=new_id()), timeout=5)
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.__name__))
async def test_no_secret_leaves_without_its_entry(
    stage: Stage, fault: Callable[[Stage], contextlib.AbstractAsyncContextManager[None]]
) -> None:
    """Callers hear AUDIT_UNAVAILABLE in their time, refusals are logged, and leases come again without a restart."""
    leasing = Leasing()
    routers = [await stage.vault.router() for _ in range(_ROUTERS)]
    tasks = [asyncio.create_task(leasing.go_on(router)) for router in routers]
    await eventually(_size(leasing.leased), lambda size: size >= _ROUTERS)
    async with fault(stage):
        await asyncio.sleep(_FAULT_SECONDS)
        await refused_caller(stage.vault)
    before = len(leasing.leased)
    await eventually(_size(leasing.leased), lambda size: size > before)
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(ended, asyncio.CancelledError), ended

    assert leasing.leased <= await stage.logged_leases()
    assert leasing.refused, "the fault stopped nothing"
    assert set(leasing.refused) == {("UNAVAILABLE", "AUDIT_UNAVAILABLE")}
    assert leasing.seconds_max < _DEADLINE_SECONDS + _GRACE_SECONDS
    await eventually(stage.logged_refusals, lambda count: count > 0)


async def test_a_lease_without_an_entry_would_be_seen(stage: Stage) -> None:
    """What the test above compares tells a lease that is not in the log."""
    leasing = Leasing()
    assert await leasing.lease(await stage.vault.router())
    assert leasing.leased <= await stage.logged_leases()
    await stage.vault.forge("DELETE FROM audit_entries WHERE kind = 100")
    assert not leasing.leased <= await stage.logged_leases()


def _size(seen: set[str]) -> Callable[[], Awaitable[int]]:
    async def size() -> int:
        return len(seen)

    return size
