"""How many durable, audited leases KeyVault gives a second and core, how long one takes, and the floors of both."""

import os
import time
from statistics import median
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.jobs import HealthJob, LeasesJob
from bench.room import Room
from bench.rows import Row, row_of
from bench.suite import Suite

_BATCH: Final = 16
_BATCHES: Final = 4
_SECRET_BYTES: Final = 108
"""As long as an Anthropic key."""
_OPENINGS: Final = 20_000


async def measure_keyvault(room: Room, suite: Suite) -> list[Row]:
    """Measure KeyVault's rows."""
    room.pin_measured("keyvault")
    server = suite.grpc("keyvault", role="router")
    batches = await room.driver(LeasesJob(server, suite.warm_agents, _BATCH))
    ran = await room.stretches(batches, in_flight=_BATCHES)
    single = await room.driver(LeasesJob(server, suite.warm_agents, 1))
    alone = await room.stretches(single, in_flight=1)
    postgres = median(each.cpu_us("postgres") for each in ran)
    empty = await room.stretches(await room.driver(HealthJob(server)), in_flight=64)
    empty_alone = await room.stretches(await room.driver(HealthJob(server)), in_flight=1)
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
        row_of(
            "floor.keyvault_health_rpc_per_core.c64",
            [each.load.per_second for each in empty],
            unit="rpc/s",
            note=f"an empty RPC on the same server, over mTLS; {room.told(empty, 'keyvault', unit='RPC')}",
        ),
        row_of(
            "floor.keyvault_health_ms_p50.c1",
            [each.load.p50_ms for each in empty_alone],
            unit="ms",
            note="the same, one at a time: what of a lease's time is not the lease",
        ),
        row_of(
            "floor.aes_gcm_open_us",
            [_open_us() for _ in range(room.pace.repetitions)],
            unit="µs",
            note=f"AES-256-GCM alone, by the `cryptography` package, {_SECRET_BYTES} bytes, in the bench's own process",
        ),
    ]


def _open_us() -> float:
    cipher, nonce = AESGCM(os.urandom(32)), os.urandom(12)
    sealed = cipher.encrypt(nonce, os.urandom(_SECRET_BYTES), b"associated data")
    begin = time.process_time()
    for _ in range(_OPENINGS):
        cipher.decrypt(nonce, sealed, b"associated data")
    return (time.process_time() - begin) / _OPENINGS * 1e6
