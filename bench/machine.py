"""Where a measurement runs: cores, pinning, and what every process and core spent.

A "window" is the stretch between two snapshots. What is not ours but ran on the same cores is told as `foreign`, since
on a shared machine it is the first thing to know about a figure.
"""

import contextlib
import os
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import psutil

from bench.errors import BenchError

_BUSY: Final = 0.85
"""Share of a core's time from which on it is called the bottleneck."""
_SPINS: Final = 7
_SPIN_STEPS: Final = 200_000


@dataclass(frozen=True)
class Cores:
    """Which core is the measured process's own, and which are everything else's."""

    measured: int
    others: tuple[int, ...]

    @property
    def others_text(self) -> str:
        """Return the others as a process takes them in its arguments."""
        return ",".join(str(core) for core in self.others)


def split_cores() -> Cores:
    """Give the last core to what is measured, the rest to everything else.

    Raises:
        BenchError: there is only one core.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise BenchError("a measurement per core needs two cores at least")
    return Cores(measured=allowed[-1], others=tuple(allowed[:-1]))


def pin(pids: Iterable[int], cores: Iterable[int]) -> None:
    """Bind processes, their children and all of their threads to cores."""
    wanted = set(cores)
    for root in pids:
        for process in _tree(root):
            # A thread's affinity is its own: setting the process's binds only its first thread.
            for task in Path(f"/proc/{process.pid}/task").glob("*"):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task.name), wanted)


@dataclass(frozen=True)
class Snapshot:
    """What had been spent at one moment, in seconds."""

    at: float
    groups: Mapping[str, float]
    busy: Mapping[int, float]


@dataclass(frozen=True)
class Window:
    """What was spent between two snapshots."""

    seconds: float
    cpu: Mapping[str, float]
    busy: Mapping[int, float]

    def share_of_core(self, group: str) -> float:
        """Return which share of one core's time the group took."""
        return self.cpu[group] / self.seconds

    def foreign(self) -> float:
        """Return how many cores' time went to what is not part of the bench."""
        return max(0.0, (sum(self.busy.values()) - sum(self.cpu.values())) / self.seconds)

    def bottleneck(self, group: str, cores: Cores) -> str:
        """Say which core limited the group."""
        own, others = self.share_of_core(group), max(self.busy[core] for core in cores.others) / self.seconds
        if own >= _BUSY:
            return f"bottleneck: its own core ({own:.0%} busy by it; the other {others:.0%})"
        if self.busy[cores.measured] / self.seconds >= _BUSY and self.foreign() > 1 - _BUSY:
            return f"bottleneck: its own core, which others' work shared ({own:.0%} busy by it; the other {others:.0%})"
        if others >= _BUSY:
            return f"bottleneck: the other core, {others:.0%} busy (its own {own:.0%} by it)"
        return f"bottleneck: neither core (its own {own:.0%} by it, the other {others:.0%})"


@dataclass
class _Spent:
    """What one process has spent, in seconds."""

    own: float = 0
    ended_children: float = 0
    children: list[int] = field(default_factory=list)


class Meter:
    """Reads what named groups of processes, with their children, and the machine's cores have spent."""

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        """Name the groups; this program itself is one of its own."""
        self._groups = {**groups, "bench": [os.getpid()]}
        self._named = {pid for pids in self._groups.values() for pid in pids}

    def snapshot(self) -> Snapshot:
        """Read everything now."""
        spent = _read_processes()
        return Snapshot(
            at=time.perf_counter(),
            groups={name: sum(self._sum(pid, spent) for pid in pids) for name, pids in self._groups.items()},
            busy={
                # What the host took away was not idle either.
                core: times.user + times.nice + times.system + times.irq + times.softirq + times.steal
                for core, times in enumerate(psutil.cpu_times(percpu=True))
            },
        )

    def since(self, before: Snapshot) -> Window:
        """Return what was spent since."""
        after = self.snapshot()
        return Window(
            seconds=after.at - before.at,
            cpu={name: after.groups[name] - before.groups[name] for name in self._groups},
            busy={core: after.busy[core] - before.busy[core] for core in after.busy},
        )

    def _sum(self, root: int, spent: Mapping[int, _Spent]) -> float:
        """Sum a process and its children, but for those that are named in a group of their own."""
        seconds = 0.0
        waiting = [root]
        while waiting:
            pid = waiting.pop()
            if (process := spent.get(pid)) is None:
                continue
            # Children of the bench itself that ended were companions, which other groups have.
            seconds += process.own if pid == os.getpid() else process.own + process.ended_children
            waiting += [child for child in process.children if child not in self._named]
        return seconds


def _read_processes() -> dict[int, _Spent]:
    """Read all processes in one pass: asking for each one's children would cost more than some of what is metered."""
    found: defaultdict[int, _Spent] = defaultdict(_Spent)
    tick = 1 / os.sysconf("SC_CLK_TCK")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # proc(5): the parent is the second field after the name; times are the 12th to the 15th.
        pid, parent = int(stat.parent.name), int(fields[1])
        own, ended = (int(fields[at]) + int(fields[at + 1]) for at in (11, 13))
        found[pid].own, found[pid].ended_children = own * tick, ended * tick
        found[parent].children.append(pid)
    return found


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process and its children."""
    total = sum(process.memory_info().rss for process in _tree(pid))
    return float(total) / 1e6


def describe() -> dict[str, object]:
    """Say what this machine is, for whoever compares results."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_average": [round(each, 2) for each in os.getloadavg()],
        "spin_ms": round(spin_ms(), 2),
    }


def spin_ms() -> float:
    """Return the CPU time of a fixed piece of arithmetic: machines, and hours of one machine, differ in speed."""
    times = []
    for _ in range(_SPINS):
        begin = time.process_time()
        sum(number * number % 7 for number in range(_SPIN_STEPS))
        times.append(time.process_time() - begin)
    return median(times) * 1000


def _commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, timeout=30
    )
    return asked.stdout.strip() or "unknown"


def _tree(root: int) -> list[psutil.Process]:
    process = psutil.Process(root)
    return [process, *process.children(recursive=True)]
