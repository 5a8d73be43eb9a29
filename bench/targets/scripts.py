"""A small script in Redis over one pipelined connection: the floor of any admission."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio

from bench.closed_loop import Call
from bench.errors import BenchError
from bench.jobs import ScriptJob

# Eight counters of one hash, read and counted up: what eight limits cost without any rule.
_SCRIPT = """
local values = redis.call('HMGET', KEYS[1], 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h')
for index, name in ipairs({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}) do
  redis.call('HINCRBY', KEYS[1], name, 1)
end
return #values
"""
_KEYS = 64


@asynccontextmanager
async def scripts(job: ScriptJob) -> AsyncIterator[Call]:
    """Give a call that runs a pipeline of scripts."""
    keys = itertools.cycle(f"bench:floor:{number}" for number in range(_KEYS))
    async with redis.asyncio.Redis(host="127.0.0.1", port=job.port) as client:
        script_sha: str = await client.script_load(_SCRIPT)

        async def call() -> int:
            pipeline = client.pipeline(transaction=False)
            for _ in range(job.batch):
                pipeline.evalsha(script_sha, 1, next(keys))
            if await pipeline.execute() != [8] * job.batch:
                raise BenchError("the script answered something else")
            return job.batch

        yield call
        await client.unlink(*(f"bench:floor:{number}" for number in range(_KEYS)))
