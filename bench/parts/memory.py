"""How much memory each service holds after load, and whether it is flat."""

from bench.jobs import OperationsJob
from bench.machine import resident_mb
from bench.room import Room
from bench.rows import Row
from bench.suite import SERVICES, Suite

_SAMPLES = 5


async def measure_memory(room: Room, suite: Suite) -> list[Row]:
    """Measure the memory rows."""
    driver = await room.driver(OperationsJob(suite.grpc("router", role="platform"), suite.warm_agents))
    room.pin_measured("router")
    sampled: dict[str, list[float]] = {name: [] for name in SERVICES}
    operations = 0
    for _ in range(_SAMPLES):
        load = await driver.run(in_flight=64, seconds=room.pace.memory_seconds / _SAMPLES)
        operations += load.operations
        for name in SERVICES:
            sampled[name].append(resident_mb(suite.pids[name]))
    return [
        Row(
            id=f"memory.{name}_mb",
            value=values[-1],
            unit="MB",
            spread=None,
            note=f"after {room.pace.memory_seconds:.0f} s and {operations:,} operations; on the way "
            + ", ".join(f"{value:.0f}" for value in values),
        )
        for name, values in sampled.items()
    ]
