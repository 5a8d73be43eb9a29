"""What a pair of reserve and settle costs Metering and Redis with eight limits, at 64 in flight."""

from statistics import median
from typing import Final

from bench.jobs import PairsJob
from bench.room import Room
from bench.rows import Row, row_of
from bench.suite import Suite

_BATCH: Final = 16
BATCHES: Final = 4


def pairs_job(suite: Suite) -> PairsJob:
    """Say to a driver to reserve and settle on the accounts with eight limits."""
    return PairsJob(
        suite.grpc("metering", role="router"),
        [member.agent_id for member in suite.limited],
        [member.owner_id for member in suite.limited],
        _BATCH,
    )


async def measure_metering(room: Room, suite: Suite) -> list[Row]:
    """Measure Metering's rows."""
    room.pin_measured("metering")
    pairs = await room.driver(pairs_job(suite))
    ran = await room.stretches(pairs, in_flight=BATCHES)
    rate = median(each.load.per_second for each in ran)
    shape = f"{BATCHES} batches of {_BATCH} in flight, 8 limits, {len(suite.limited)} accounts, {rate:,.0f} pairs/s"
    return [
        row_of(
            "metering.cpu_us_per_pair.c64",
            [each.cpu_us("metering") for each in ran],
            unit="µs",
            note=f"{shape}; {room.told(ran, 'metering', unit='pair')}",
        ),
        row_of(
            "metering.redis_us_per_pair",
            [each.cpu_us("redis") for each in ran],
            unit="µs",
            note=f"{shape}; Postgres {median(each.cpu_us('postgres') for each in ran):,.0f} µs",
        ),
    ]
