"""What the Router does a second and core, beside the peers in the same run, and what it adds to a call's latency."""

from statistics import median
from typing import Final

from bench.companions import Driver, direct_job
from bench.jobs import OperationsJob
from bench.peers.pins import HOW_TO_INSTALL
from bench.peers.running import Peer
from bench.room import Room, Stretch
from bench.rows import Row, row_of
from bench.suite import Suite

_WARM_OPERATIONS: Final = 1_500
"""Enough for every agent's lease to be taken once."""


async def measure_router(room: Room, suite: Suite, peers: list[Peer]) -> list[Row]:
    """Measure the Router's rows and, where peers run, the ratios to them."""
    operations = await room.driver(OperationsJob(suite.grpc("router", role="platform"), suite.warm_agents))
    room.pin_measured("router", *(peer.name for peer in peers))
    await _warm(room, operations)
    rows = await _contest(room, operations, peers)
    rows += await _added(room, suite, operations)
    await suite.upstream.set_delay(100)
    rows.append(await _rate(room, operations, "router.ops_per_core.slow_c512", in_flight=512))
    await suite.upstream.set_delay(0)
    cold = await room.driver(OperationsJob(suite.grpc("router", role="platform"), suite.cold_agents))
    rows.append(await _rate(room, cold, "router.ops_per_core.cold_c64", in_flight=64))
    return rows


async def _warm(room: Room, operations: Driver) -> None:
    """Run until leases, connections and the code itself are warm."""
    done = 0
    while done < _WARM_OPERATIONS:
        done += (await operations.run(in_flight=64, seconds=room.pace.warm_seconds)).operations


async def _contest(room: Room, operations: Driver, peers: list[Peer]) -> list[Row]:
    """Interleave the Router with the peers, so that all of them see the same machine."""
    drivers = {"router": operations}
    for peer in peers:
        drivers[peer.name] = await room.driver(peer.job)
        await drivers[peer.name].run(in_flight=64, seconds=room.pace.warm_seconds)
    ran: dict[str, list[Stretch]] = {name: [] for name in drivers}
    for _ in range(room.pace.repetitions):
        for name, driver in drivers.items():
            ran[name].append(await room.stretch(driver, in_flight=64, seconds=room.pace.seconds))
    rows = [
        row_of(
            "router.ops_per_core.c64",
            _rates(ran["router"]),
            unit="op/s",
            note=room.told(ran["router"], "router", unit="operation")
            + f"; p50 {median(each.load.p50_ms for each in ran['router']):.1f} ms",
        ),
        _suite_row(ran["router"]),
    ]
    for peer in peers:
        rows += _peer_rows(room, peer, ran)
    return rows


def _peer_rows(room: Room, peer: Peer, ran: dict[str, list[Stretch]]) -> list[Row]:
    ours, theirs = _rates(ran["router"]), _rates(ran[peer.name])
    named = f"{peer.name} {peer.version}"
    cost = median(each.cpu_us(peer.name) for each in ran[peer.name])
    alone = cost / median(each.cpu_us("router") for each in ran["router"])
    whole = cost / median(each.cpu_us("router", "metering", "keyvault") for each in ran["router"])
    return [
        row_of(
            f"router.ratio_{peer.name}.c64",
            [our / their for our, their in zip(ours, theirs, strict=True)],
            unit="×",
            note=f"against {named}: stateless, without custody or caps; repetitions interleaved. By CPU time per "
            f"operation {alone:.1f} ×, and {whole:.1f} × when Metering and KeyVault are counted in",
        ),
        row_of(
            f"peer.{peer.name}_per_core.c64",
            theirs,
            unit="req/s",
            note=f"{named}: " + room.told(ran[peer.name], peer.name, unit="request"),
        ),
    ]


def _suite_row(stretches: list[Stretch]) -> Row:
    parts = {
        name: median(each.cpu_us(name) for each in stretches)
        for name in ("router", "metering", "keyvault", "redis", "postgres")
    }
    return row_of(
        "suite.cpu_us_per_op.c64",
        [each.cpu_us("router", "metering", "keyvault") for each in stretches],
        unit="µs",
        note="; ".join(f"{name} {value:,.0f}" for name, value in parts.items()) + " µs; stores are not in the sum",
    )


async def _rate(room: Room, driver: Driver, row_id: str, *, in_flight: int) -> Row:
    stretches = await room.stretches(driver, in_flight=in_flight)
    beside = ", ".join(
        f"{name} {median(each.cpu_us(name) for each in stretches):,.0f}" for name in ("metering", "keyvault")
    )
    note = f"{room.told(stretches, 'router', unit='operation')}; {beside} µs"
    return row_of(row_id, _rates(stretches), unit="op/s", note=note)


async def _added(room: Room, suite: Suite, operations: Driver) -> list[Row]:
    """Compare one call at a time through the Router with the same call straight to the provider, in turn."""
    direct = await room.driver(direct_job(suite.upstream))
    pairs: list[tuple[Stretch, Stretch]] = []
    for driver in (direct, operations):
        await driver.run(in_flight=1, seconds=room.pace.warm_seconds)
    for _ in range(room.pace.repetitions):
        straight = await room.stretch(direct, in_flight=1, seconds=room.pace.seconds / 2)
        routed = await room.stretch(operations, in_flight=1, seconds=room.pace.seconds)
        pairs.append((straight, routed))
    foreign = median(routed.window.foreign() for _, routed in pairs)
    note = f"over a direct https call of {{:.2f}} ms; foreign work {foreign:.2f} cores"
    return [
        row_of(
            "router.added_ms_p50.c1",
            [routed.load.p50_ms - straight.load.p50_ms for straight, routed in pairs],
            unit="ms",
            note=note.format(median(straight.load.p50_ms for straight, _ in pairs)),
        ),
        row_of(
            "router.added_ms_p99.c1",
            [routed.load.p99_ms - straight.load.p99_ms for straight, routed in pairs],
            unit="ms",
            note=note.format(median(straight.load.p99_ms for straight, _ in pairs)),
        ),
    ]


def _rates(stretches: list[Stretch]) -> list[float]:
    return [each.load.per_second for each in stretches]


def missing_peers(peers: list[Peer]) -> list[str]:
    """Say which ratio rows are absent, and how to get them."""
    present = {peer.name for peer in peers}
    return [
        f"router.ratio_{name}.c64 is left out: {name} is not installed; {HOW_TO_INSTALL}"
        for name in ("portkey", "litellm")
        if name not in present
    ]
