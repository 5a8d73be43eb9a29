"""What the rows stand on: an empty RPC of the same server kind, a bare script in Redis, a direct call."""

from statistics import median

from bench.companions import direct_job
from bench.jobs import HealthJob, ScriptJob
from bench.room import Room
from bench.rows import Row, row_of
from bench.suite import Suite

_SCRIPTS = 16


async def measure_floors(room: Room, suite: Suite) -> list[Row]:
    """Measure the floors."""
    room.pin_measured("router")
    empty = await room.stretches(await room.driver(HealthJob(suite.grpc("router", role="platform"))), in_flight=64)
    scripts = await room.stretches(await room.driver(ScriptJob(suite.redis_port, _SCRIPTS)), in_flight=4)
    direct = await room.stretches(await room.driver(direct_job(suite.upstream)), in_flight=1)
    return [
        row_of(
            "floor.health_rpc_per_core.c64",
            [each.load.per_second for each in empty],
            unit="rpc/s",
            note=f"the Router's health over mTLS; {room.told(empty, 'router', unit='RPC')}; "
            f"driver {median(each.cpu_us('drivers') for each in empty):,.0f} µs",
        ),
        row_of(
            "floor.redis_script_us",
            [each.cpu_us("redis") for each in scripts],
            unit="µs",
            note="Redis' CPU for a script that counts eight fields up, pipelined by 16",
        ),
        row_of(
            "floor.direct_ms_p50.c1",
            [each.load.p50_ms for each in direct],
            unit="ms",
            note="one call at a time straight to the canned provider over https",
        ),
    ]
