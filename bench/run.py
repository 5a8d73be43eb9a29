"""Measure the suite, print the table, write bench/results/latest.json.

    python -m bench.run            every part
    ONLY=router,metering …         some parts
    QUICK=1 …                      short: for a look, not for a verdict

Ends with 1 when a part could not be measured. Nothing that it starts outlives it.
"""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from rich.console import Console

from bench.errors import BenchError
from bench.machine import describe, split_cores
from bench.parts.audit import measure_audit
from bench.parts.floors import measure_floors
from bench.parts.flush import measure_flush
from bench.parts.growth import measure_growth
from bench.parts.keyvault import measure_keyvault
from bench.parts.memory import measure_memory
from bench.parts.metering import measure_metering
from bench.parts.rewrap import measure_rewrap
from bench.parts.root_keys import measure_root_keys
from bench.parts.router import measure_router, missing_peers
from bench.peers.running import Peer, installed, open_peer
from bench.room import FULL, QUICK, Room
from bench.rows import Row, notes_of, table_of, write_results
from bench.suite import Suite, open_suite

RESULTS: Final = Path(__file__).resolve().parent / "results" / "latest.json"
_LOGS: Final = RESULTS.parent / "logs"


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


async def _with_peers(room: Room, suite: Suite) -> list[Row]:
    """Measure the Router beside the peers that are installed, each running only for that part."""
    names = installed()
    async with AsyncExitStack() as stack:
        folders = {name: room.folder / name for name in names}
        for folder in folders.values():
            await asyncio.to_thread(folder.mkdir)
        _say(f"starting {', '.join(names) or 'no peers'}")
        opening = [
            stack.enter_async_context(open_peer(name, upstream=suite.upstream, folder=folder))
            for name, folder in folders.items()
        ]
        opened = await asyncio.gather(*opening, return_exceptions=True)
        for failure in (each for each in opened if isinstance(each, BaseException)):
            raise failure
        peers = [each for each in opened if isinstance(each, Peer)]
        room.groups.update({peer.name: [peer.pid] for peer in peers})
        try:
            for line in missing_peers(peers):
                _say(line)
            return await measure_router(room, suite, peers)
        finally:
            for peer in peers:
                del room.groups[peer.name]


_PARTS: Final[dict[str, Callable[[Room, Suite], Awaitable[list[Row]]]]] = {
    "floors": measure_floors,
    "keyvault": measure_keyvault,
    "audit": measure_audit,
    "root_keys": measure_root_keys,
    "metering": measure_metering,
    "flush": measure_flush,
    "router": _with_peers,
    "memory": measure_memory,
    # Last: it leaves its keys behind.
    "growth": measure_growth,
    "rewrap": measure_rewrap,
}


async def measure(names: list[str], *, is_quick: bool) -> tuple[list[Row], list[str]]:
    """Run the parts; return their rows, and what failed."""
    rows: list[Row] = []
    failures: list[str] = []
    pace = QUICK if is_quick else FULL
    with tempfile.TemporaryDirectory(prefix="byok-bench-") as folder:
        async with AsyncExitStack() as stack:
            stack.callback(_keep_logs, Path(folder))
            room = Room(split_cores(), pace, Path(folder), stack)
            _say("starting the suite, with its agents and keys")
            suite = await stack.enter_async_context(open_suite(room))
            for name in names:
                _say(f"measuring {name}")
                began = time.perf_counter()
                try:
                    async with AsyncExitStack() as part:
                        room.stack = part
                        rows += await _PARTS[name](room, suite)
                except BenchError as error:
                    failures.append(f"{name}: {error}")
                finally:
                    room.groups.pop("drivers", None)
                    _say(f"{name} took {time.perf_counter() - began:.0f} s")
    return rows, failures


def _keep_logs(folder: Path) -> None:
    """Keep what the processes of the last run logged, for whoever asks why a part failed."""
    shutil.rmtree(_LOGS, ignore_errors=True)
    _LOGS.mkdir(parents=True)
    for log in folder.rglob("*.log"):
        shutil.copyfile(log, _LOGS / f"{log.parent.name}-{log.name}")


def _asked() -> list[str]:
    """Return the parts that were asked for.

    Raises:
        BenchError: there is no such part.
    """
    names = [name.strip() for name in os.environ.get("ONLY", "").split(",") if name.strip()]
    unknown = [name for name in names if name not in _PARTS]
    if unknown:
        raise BenchError(f"no part is called {', '.join(unknown)}; there are {', '.join(_PARTS)}")
    return names or list(_PARTS)


def main() -> int:
    """Measure, print and write."""
    # Ended by a signal, it still puts away what it started and wrote.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        machine = describe()
        is_quick = os.environ.get("QUICK", "") not in {"", "0"}
        rows, failures = asyncio.run(measure(_asked(), is_quick=is_quick))
    except BenchError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    console = Console()
    console.print(table_of(rows))
    console.print(notes_of(rows))
    write_results(RESULTS, machine={**machine, "is_quick": is_quick}, rows=rows)
    _say(f"wrote {RESULTS.relative_to(Path.cwd())}" if RESULTS.is_relative_to(Path.cwd()) else f"wrote {RESULTS}")
    for failure in failures:
        _say(f"FAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
