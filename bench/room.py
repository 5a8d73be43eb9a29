"""One bench run: its cores, its pace, and every process that is part of it, so that all that ran is accounted for."""

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.companions import Driver, open_driver
from bench.jobs import Job, LoadResult
from bench.machine import Cores, Meter, Window, pin


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long and how often things are measured."""

    repetitions: int
    seconds: float
    warm_seconds: float
    memory_seconds: float
    backlog_seconds: float


FULL = Pace(repetitions=5, seconds=10, warm_seconds=5, memory_seconds=600, backlog_seconds=15)
QUICK = Pace(repetitions=3, seconds=2, warm_seconds=1, memory_seconds=30, backlog_seconds=5)


@dataclass(frozen=True)
class Stretch:
    """A stretch of load and what it cost."""

    load: LoadResult
    window: Window

    def cpu_us(self, *groups: str) -> float:
        """Return the CPU time of these groups per operation, in microseconds."""
        return sum(self.window.cpu[group] for group in groups) / self.load.operations * 1e6


@dataclass
class Room:
    """What a part of the bench works with. Groups name processes by what they are."""

    cores: Cores
    pace: Pace
    folder: Path
    stack: AsyncExitStack
    groups: dict[str, list[int]] = field(default_factory=dict)

    async def driver(self, job: Job) -> Driver:
        """Start a driver that lives as long as the run."""
        driver = await self.stack.enter_async_context(open_driver(job, self.cores))
        self.groups.setdefault("drivers", []).append(driver.pid)
        return driver

    def pin_measured(self, *measured: str) -> None:
        """Give these groups the measured core, and every other group the rest."""
        for name, pids in self.groups.items():
            pin(pids, [self.cores.measured] if name in measured else self.cores.others)

    async def stretch(self, driver: Driver, *, in_flight: int, seconds: float) -> Stretch:
        """Run load and meter everything meanwhile.

        Raises:
            BenchError: a call failed.
        """
        meter = Meter(self.groups)
        before = meter.snapshot()
        load = await driver.run(in_flight=in_flight, seconds=seconds)
        return Stretch(load, meter.since(before))

    async def stretches(self, driver: Driver, *, in_flight: int) -> list[Stretch]:
        """Warm up, then run the pace's repetitions."""
        await driver.run(in_flight=in_flight, seconds=self.pace.warm_seconds)
        return [
            await self.stretch(driver, in_flight=in_flight, seconds=self.pace.seconds)
            for _ in range(self.pace.repetitions)
        ]

    def told(self, stretches: list[Stretch], measured: str, *, unit: str) -> str:
        """Say beside a rate what travels: the process's own CPU time, the bottleneck, and who else was there."""
        own = median(each.cpu_us(measured) for each in stretches)
        foreign = median(each.window.foreign() for each in stretches)
        last = stretches[-1].window
        return (
            f"{own:,.0f} µs CPU of its own per {unit} ({1e6 / own:,.0f} per CPU-second); "
            f"{last.bottleneck(measured, self.cores)}; foreign work {foreign:.2f} cores"
        )
