"""Leases from KeyVault in batches, as a Router with a cold cache takes them."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from bench.closed_loop import Call
from bench.errors import BenchError
from bench.jobs import LeasesJob
from bench.targets.connection import bytes_call, open_connection
from byok.keyvault.v1.lease_pb2 import AgentPurpose, LeaseItem
from byok.keyvault.v1.lease_service_pb2 import AcquireLeasesRequest, AcquireLeasesResponse
from byok.type.v1.operation_pb2 import OPERATION_GUARDRAIL_EVALUATION
from servicekit.ids import new_uuid7


@asynccontextmanager
async def leases(job: LeasesJob) -> AsyncIterator[Call]:
    """Give a call that takes a batch of leases, and checks that every one of them was granted."""
    holder = new_uuid7(datetime.now(UTC))
    # Nobody opens these leases: the public half is all that the driver keeps.
    recipient = X25519PrivateKey.generate().public_key().public_bytes_raw()
    requests = itertools.cycle(
        AcquireLeasesRequest(
            holder=holder, recipient_public_key=recipient, items=[_item(agent_id) for agent_id in batch]
        ).SerializeToString()
        for batch in _batches(job.agent_ids, job.batch)
    )
    async with open_connection(job.keyvault) as connection:
        acquire = bytes_call(connection, "byok.keyvault.v1.LeaseService/AcquireLeases")

        async def call() -> int:
            answer = AcquireLeasesResponse.FromString(await acquire(next(requests)))
            refused = [result for result in answer.results if not result.HasField("lease")]
            if refused or len(answer.results) != job.batch or not answer.sealed_leases:
                raise BenchError(f"{len(refused)} of {len(answer.results)} leases refused: {refused[:1]}")
            return job.batch

        yield call


def _item(agent_id: str) -> LeaseItem:
    return LeaseItem(agent=AgentPurpose(agent_id=agent_id, operation=OPERATION_GUARDRAIL_EVALUATION))


def _batches(agent_ids: list[str], size: int) -> list[list[str]]:
    if len(agent_ids) < size:
        raise BenchError(f"{len(agent_ids)} agents make no batch of {size} different ones")
    whole = len(agent_ids) // size * size
    return [agent_ids[start : start + size] for start in range(0, whole, size)]
