"""Guardrail evaluations through the Router, each with an id of its own, agents in turn."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from bench.canned import CONTENT, POLICY
from bench.closed_loop import Call
from bench.errors import BenchError
from bench.jobs import OperationsJob
from bench.targets.connection import bytes_call, open_connection
from bench.templates import Template
from byok.router.v1.operation_result_pb2 import DISPOSITION_PROCEED
from byok.router.v1.operation_service_pb2 import (
    GUARDRAIL_VERDICT_ALLOW,
    EvaluateGuardrailRequest,
    EvaluateGuardrailResponse,
    OperationContext,
)
from servicekit.ids import new_uuid7

_CHECK_EVERY = 64


@asynccontextmanager
async def operations(job: OperationsJob) -> AsyncIterator[Call]:
    """Give a call that evaluates one guardrail; one answer in 64 is read and checked."""
    marks = (new_uuid7(datetime.now(UTC)), job.agent_ids[0])
    template = Template(
        EvaluateGuardrailRequest(
            context=OperationContext(request_id=marks[0], agent_id=marks[1]), content=CONTENT, policy_text=POLICY
        ),
        marks,
    )
    agents = itertools.cycle([agent_id.encode() for agent_id in job.agent_ids])
    numbers = itertools.count()
    async with open_connection(job.router) as connection:
        evaluate = bytes_call(connection, "byok.router.v1.OperationService/EvaluateGuardrail")

        async def call() -> int:
            request_id = new_uuid7(datetime.now(UTC)).encode()
            answer = await evaluate(template.fill(request_id, next(agents)))
            if next(numbers) % _CHECK_EVERY == 0:
                _check(answer, request_id.decode())
            return 1

        yield call


def _check(wire: bytes, request_id: str) -> None:
    answer = EvaluateGuardrailResponse.FromString(wire)
    right = (request_id, DISPOSITION_PROCEED, GUARDRAIL_VERDICT_ALLOW)
    if (answer.request_id, answer.disposition, answer.verdict) != right:
        raise BenchError(f"not the answer of this operation: {answer.disposition=} {answer.verdict=}")
