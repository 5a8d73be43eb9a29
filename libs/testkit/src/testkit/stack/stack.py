"""Postgres, Redis, a certificate authority, the provider simulator and the services, as one thing to start and stop."""

import fcntl
import secrets
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import redis.asyncio

from servicekit.identity import TlsFiles
from testkit.errors import TestkitError
from testkit.pki import ThrowawayCa
from testkit.postgres import EmbeddedPostgres, create_database, drop_database, dsn_of_database
from testkit.redis import EmbeddedRedis
from testkit.settings import TestkitSettings
from testkit.simulator.addresses import Addresses
from testkit.simulator.process import SimulatorProcess
from testkit.stack.environment import (
    Surroundings,
    keyvault_environment,
    metering_environment,
    router_environment,
    target_of,
)
from testkit.stack.services import Service, ServiceProcess

_Part = TypeVar("_Part")
Progress = Callable[[str], None]

CLIENT_ROLES = ("platform", "edge", "operator")
_ENVIRONMENTS = {
    Service.KEYVAULT: keyvault_environment,
    Service.METERING: metering_environment,
    Service.ROUTER: router_environment,
}


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """What kind of stack to run."""

    keyvaults: int = 1
    meterings: int = 1
    routers: int = 1
    log_level: str = "info"
    # Keep the data when the stack stops, for a later one in the same folder.
    is_kept: bool = True
    # Sync Postgres' writes to disk. A killed process loses nothing without it; a killed machine would.
    is_durable: bool = True
    has_fast_simulator: bool = False
    # Further environment variables for the services, each of which gets those with its own prefix.
    environment: Mapping[str, str] = field(default_factory=dict)


class Stack:
    """The running suite. Everything it starts ends with it, also when its starter is killed."""

    def __init__(
        self, directory: Path, *, options: StackOptions | None = None, progress: Progress | None = None
    ) -> None:
        """Prepare a stack whose files all live in `directory`.

        Args:
            directory: made if missing. A second stack there finds the first one's data.
            options: what kind of stack.
            progress: told what is being set up.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory.resolve()
        self._options = options or StackOptions()
        self._progress: Progress = progress or (lambda _text: None)
        self._given = TestkitSettings()
        self._exits = ExitStack()
        self._postgres: EmbeddedPostgres | None = None
        self._redis: EmbeddedRedis | None = None
        self._ca: ThrowawayCa | None = None
        self._around: Surroundings | None = None
        self._simulator: SimulatorProcess | None = None
        self._addresses: Addresses | None = None
        self._clients: dict[str, TlsFiles] = {}
        self._services: dict[tuple[Service, int], ServiceProcess] = {}
        self._unlisted: set[ServiceProcess] = set()
        self._borrowed: list[str] = []

    @property
    def postgres(self) -> EmbeddedPostgres:
        """Return the embedded Postgres. Raises TestkitError when BYOK_TEST_POSTGRES_DSN replaces it."""
        return _started(self._postgres, "the embedded Postgres")

    @property
    def redis(self) -> EmbeddedRedis:
        """Return the embedded Redis. Raises TestkitError when BYOK_TEST_REDIS_URL replaces it."""
        return _started(self._redis, "the embedded Redis")

    @property
    def ca(self) -> ThrowawayCa:
        """Return the authority that issued every certificate of the stack."""
        return _started(self._ca, "the certificate authority")

    @property
    def simulator(self) -> Addresses:
        """Return where the provider simulator listens."""
        return _started(self._addresses, "the simulator")

    @property
    def keyvault_dsn(self) -> str:
        """Return the DSN of KeyVault's database."""
        return _started(self._around, "the stack").keyvault_dsn

    @property
    def metering_dsn(self) -> str:
        """Return the DSN of Metering's database."""
        return _started(self._around, "the stack").metering_dsn

    @property
    def services(self) -> list[ServiceProcess]:
        """Return every service process."""
        return list(self._services.values())

    def client_tls(self, role: str) -> TlsFiles:
        """Return the certificate of a client role: platform, edge, operator, or any other name."""
        if role not in self._clients:
            self._clients[role] = self.ca.issue(role)
        return self._clients[role]

    def service(self, service: str, replica: int = 0) -> ServiceProcess:
        """Return one replica."""
        try:
            return self._services[Service(service), replica]
        except KeyError:
            message = f"the stack has no {service} {replica}"
            raise TestkitError(message) from None

    def target(self, service: str) -> str:
        """Return the gRPC target of all replicas of a service; the certificates' name is `localhost`."""
        listed = [each for each in self.services if each not in self._unlisted]
        return target_of([each.grpc_port for each in listed if each.service == service])

    async def start(self) -> Self:
        """Start everything.

        Raises:
            TestkitError: a process did not become ready; the message carries the end of its log.
        """
        try:
            await self._start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def add_replica(self, service: str, *, is_listed: bool = True, **surroundings: Any) -> ServiceProcess:
        """Start one more replica, with other surroundings (fields of `Surroundings`) than the others have.

        Args:
            service: of which service.
            is_listed: whether `target` leads to it, too.
            surroundings: what it finds elsewhere than the others do.
        """
        kind = Service(service)
        around = replace(_started(self._around, "the stack"), **surroundings)
        replica = sum(known is kind for known, _ in self._services)
        environment = _ENVIRONMENTS[kind](self.ca.issue(kind), around)
        process = ServiceProcess(kind, replica=replica, directory=self.directory, environment=environment)
        self._services[kind, replica] = process
        if not is_listed:
            self._unlisted.add(process)
        self._exits.callback(process.stop)
        await process.start_async()
        return process

    def stop(self, service: str, replica: int = 0) -> int | None:
        """Let a replica drain and end; return its exit status."""
        return self.service(service, replica).stop()

    async def start_again(self, service: str, replica: int = 0) -> None:
        """Start a replica that ended, on its old ports."""
        await self.service(service, replica).start_async()

    async def restart(self, service: str, replica: int = 0) -> None:
        """Let a replica drain, and start it again on its old ports."""
        self.stop(service, replica)
        await self.start_again(service, replica)

    def kill9(self, service: str, replica: int = 0) -> None:
        """End a replica at once."""
        self.service(service, replica).kill9()

    async def aclose(self) -> None:
        """Stop everything that was started, callers first, and give back what was borrowed."""
        self._exits.close()
        while self._borrowed and self._given.postgres_dsn is not None:
            await drop_database(self._given.postgres_dsn, self._borrowed.pop())

    def log_files(self) -> list[Path]:
        """Return every log and output file of the stack, for tests that look for what must not be in them."""
        return sorted([*self.directory.rglob("*.log"), *self.directory.rglob("*.out")])

    async def __aenter__(self) -> Self:
        """Start everything. Blocks while processes start: their lives follow the thread that starts them."""
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything; the data stays."""
        await self.aclose()

    async def _start(self) -> None:
        self._claim_directory()
        self._ca = ThrowawayCa(self.directory / "certificates")
        for role in CLIENT_ROLES:
            self.client_tls(role)
        self._progress("starting Postgres")
        keyvault_dsn, metering_dsn = await self._start_postgres()
        self._progress("starting Redis")
        redis_url = await self._start_redis()
        self._progress("starting the provider simulator")
        self._start_simulator()
        self._around = Surroundings(
            keyvault_dsn=keyvault_dsn,
            metering_dsn=metering_dsn,
            redis_url=redis_url,
            root_key_file=_secret_file(self.directory / "root.key"),
            answer_key_file=_secret_file(self.directory / "answer.key"),
            ca_file=self._ca.ca_file,
            allowed_hosts=self.simulator.hosts,
            log_level=self._options.log_level,
            extra=self._options.environment,
        )
        self._start_services()

    def _claim_directory(self) -> None:
        """Keep a second stack out of the folder; the kernel gives the lock back when this process ends."""
        lock = self._exits.enter_context((self.directory / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another stack runs in {self.directory}; stop it, or name another folder"
            raise TestkitError(message) from None

    async def _start_postgres(self) -> tuple[str, str]:
        given = self._given.postgres_dsn
        if given is not None:
            # Databases of our own on a server that others use too.
            names = [f"byok_{name}_{uuid.uuid4().hex[:12]}" for name in ("keyvault", "metering")]
            for name in names:
                await create_database(given, name)
                self._borrowed.append(name)
            self._progress(f"using databases {', '.join(names)} of the given Postgres")
            return dsn_of_database(given, names[0]), dsn_of_database(given, names[1])
        postgres = EmbeddedPostgres(self.directory / "postgres", is_durable=self._options.is_durable)
        is_new = not (self.directory / "postgres" / "PG_VERSION").exists()
        postgres.start()
        self._exits.callback(postgres.stop if self._options.is_kept else postgres.destroy)
        self._postgres = postgres
        if is_new:
            for name in ("keyvault", "metering"):
                await postgres.create_database(name)
        return postgres.dsn("keyvault"), postgres.dsn("metering")

    async def _start_redis(self) -> str:
        given = self._given.redis_url
        if given is not None:
            async with redis.asyncio.from_url(given) as client:
                await client.flushall()
            return given
        server = EmbeddedRedis(self.directory / "redis")
        server.start()
        self._exits.callback(server.stop)
        self._redis = server
        return server.url

    def _start_simulator(self) -> None:
        simulator = SimulatorProcess(
            self.directory / "simulator", tls=self.ca.issue("simulator"), is_fast=self._options.has_fast_simulator
        )
        self._addresses = simulator.start()
        self._exits.callback(simulator.stop)
        self._simulator = simulator

    def _start_services(self) -> None:
        """Start each service after those that it calls; replicas of one service start together."""
        counts = {
            Service.KEYVAULT: self._options.keyvaults,
            Service.METERING: self._options.meterings,
            Service.ROUTER: self._options.routers,
        }
        for service, count in counts.items():
            if count == 0:
                continue
            self._progress(f"starting {service}")
            self._launch(service, count)
            around = _started(self._around, "the stack")
            if service is Service.KEYVAULT:
                self._around = replace(around, keyvault_target=self.target(service))
            elif service is Service.METERING:
                self._around = replace(around, metering_target=self.target(service))

    def _launch(self, service: Service, count: int) -> None:
        around = _started(self._around, "the stack")
        replicas = []
        for replica in range(count):
            tls = self.ca.issue(service)
            environment = _ENVIRONMENTS[service](tls, around)
            process = ServiceProcess(service, replica=replica, directory=self.directory, environment=environment)
            self._services[service, replica] = process
            self._exits.callback(process.stop)
            replicas.append(process)
        # The first runs the migrations; the others find them done.
        replicas[0].start()
        for process in replicas[1:]:
            process.launch()
        for process in replicas[1:]:
            process.wait_until_ready()


def _secret_file(path: Path) -> Path:
    """Return a file of 32 random bytes in hex that nobody but its owner may read, made once per stack folder."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32) + "\n")
    return path


def _started(part: _Part | None, name: str) -> _Part:
    if part is None:
        message = f"{name} is not running in this stack"
        raise TestkitError(message)
    return part
