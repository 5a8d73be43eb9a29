"""What a pair of reserve and settle costs Metering and Redis with eight limits, and how fast the ledger is written."""

from statistics import median
from typing import Final

from bench.jobs import PairsJob
from bench.room import Room
from bench.rows import Row, row_of
from bench.suite import Suite

_BATCH: Final = 16
_BATCHES: Final = 4


async def measure_metering(room: Room, suite: Suite) -> list[Row]:
    """Measure Metering's rows."""
    room.pin_measured("metering")
    fleet = suite.limited
    job = PairsJob(
        suite.grpc("metering", role="router"),
        [member.agent_id for member in fleet],
        [member.owner_id for member in fleet],
        _BATCH,
    )
    pairs = await room.driver(job)
    ran = await room.stretches(pairs, in_flight=_BATCHES)
    rate = median(each.load.per_second for each in ran)
    shape = f"{_BATCHES} batches of {_BATCH} in flight, 8 limits, {len(fleet)} accounts, {rate:,.0f} pairs/s"
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
