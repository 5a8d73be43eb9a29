"""A load driver process: connects once, then runs each stretch of load that it is told to.

    python -m bench.driver CORES

reads a `Job`, then any number of `Load`s, from standard input, and answers each with a line. It ends when its standard
input does, so that it never outlives the bench.
"""

import asyncio
import gc
import os
import sys
from contextlib import AbstractAsyncContextManager

import msgspec
import uvloop

from bench.closed_loop import Call, closed_loop
from bench.jobs import HealthJob, HttpJob, Job, LeasesJob, Load, OperationsJob, PairsJob, ScriptJob
from bench.targets.admission import pairs
from bench.targets.health import health
from bench.targets.leases import leases
from bench.targets.operations import operations
from bench.targets.posts import posts
from bench.targets.scripts import scripts


def _open(job: Job) -> AbstractAsyncContextManager[Call]:
    match job:
        case HttpJob():
            return posts(job)
        case OperationsJob():
            return operations(job)
        case PairsJob():
            return pairs(job)
        case LeasesJob():
            return leases(job)
        case HealthJob():
            return health(job)
        case ScriptJob():
            return scripts(job)


async def _lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _say(answer: bytes) -> None:
    sys.stdout.buffer.write(answer + b"\n")
    sys.stdout.buffer.flush()


async def _main() -> None:
    lines = await _lines()
    job = msgspec.json.decode(await lines.readline(), type=Job)
    async with _open(job) as call:
        gc.freeze()
        _say(b"{}")
        while line := await lines.readline():
            _say(msgspec.json.encode(await closed_loop(call, msgspec.json.decode(line, type=Load))))


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(core) for core in sys.argv[1].split(",")})
    gc.set_threshold(100_000, 50, 100)
    uvloop.run(_main())
