"""Health checks: the empty RPC of the same server kind, which is the floor of any RPC on it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from grpc_health.v1 import health_pb2

from bench.closed_loop import Call
from bench.errors import BenchError
from bench.jobs import HealthJob
from bench.targets.connection import bytes_call, open_connection


@asynccontextmanager
async def health(job: HealthJob) -> AsyncIterator[Call]:
    """Give a call that asks for the server's health."""
    request = health_pb2.HealthCheckRequest().SerializeToString()
    serving = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()
    async with open_connection(job.server) as connection:
        check = bytes_call(connection, "grpc.health.v1.Health/Check")

        async def call() -> int:
            answer = await check(request)
            if answer != serving:
                raise BenchError("the server is not serving")
            return 1

        yield call
