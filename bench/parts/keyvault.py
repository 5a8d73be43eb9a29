"""How many durable, audited leases KeyVault gives a second and core, and how long one alone takes."""

from statistics import median

from bench.jobs import LeasesJob
from bench.room import Room
from bench.rows import Row, row_of
from bench.suite import Suite

_BATCH = 16
_BATCHES = 4


async def measure_keyvault(room: Room, suite: Suite) -> list[Row]:
    """Measure KeyVault's rows."""
    room.pin_measured("keyvault")
    server = suite.grpc("keyvault", role="router")
    batches = await room.driver(LeasesJob(server, suite.warm_agents, _BATCH))
    ran = await room.stretches(batches, in_flight=_BATCHES)
    single = await room.driver(LeasesJob(server, suite.warm_agents, 1))
    alone = await room.stretches(single, in_flight=1)
    postgres = median(each.cpu_us("postgres") for each in ran)
    return [
        row_of(
            "keyvault.leases_per_core.c64",
            [each.load.per_second for each in ran],
            unit="lease/s",
            note=f"{_BATCHES} batches of {_BATCH}; {room.told(ran, 'keyvault', unit='lease')}; "
            f"Postgres {postgres:,.0f} µs",
        ),
        row_of(
            "keyvault.lease_ms_p50.c1",
            [each.load.p50_ms for each in alone],
            unit="ms",
            note=f"p99 {median(each.load.p99_ms for each in alone):.1f} ms",
        ),
    ]
