"""The bench's own arithmetic: load is counted right, and requests built from templates are the real ones."""

import asyncio

import pytest

from bench.closed_loop import closed_loop
from bench.errors import BenchError
from bench.jobs import Load
from bench.templates import Template
from byok.router.v1.operation_service_pb2 import EvaluateGuardrailRequest, OperationContext


async def test_calls_in_flight_are_all_counted() -> None:
    """Workers that wait at the same time do not overwrite each other's counts."""
    made = 0

    async def call() -> int:
        nonlocal made
        made += 1
        await asyncio.sleep(0)
        return 3

    result = await closed_loop(call, Load(in_flight=8, seconds=0.05))

    assert (result.calls, result.operations) == (made, 3 * made)
    assert not result.errors


async def test_a_failing_call_ends_the_load_and_is_named() -> None:
    """A run that only fails does not go on to its end, and says why."""

    async def call() -> int:
        await asyncio.sleep(0)
        raise BenchError("refused")

    result = await asyncio.wait_for(closed_loop(call, Load(in_flight=4, seconds=60)), 10)

    assert result.calls == 0
    assert set(result.errors) == {"BenchError: refused"}


def test_a_template_fills_in_ids_of_the_same_length() -> None:
    """What a driver sends is what the message would be, byte for byte."""

    def message(request_id: str, agent_id: str) -> EvaluateGuardrailRequest:
        context = OperationContext(request_id=request_id, agent_id=agent_id)
        return EvaluateGuardrailRequest(context=context, content="content", policy_text="policy")

    template = Template(message("id-000", "agent-00"), ["id-000", "agent-00"])

    assert template.fill(b"id-123", b"agent-77") == message("id-123", "agent-77").SerializeToString()


def test_a_template_refuses_a_mark_that_is_not_there_once() -> None:
    """A mark inside another field would be replaced there too."""
    request = EvaluateGuardrailRequest(content="twice twice")
    with pytest.raises(BenchError, match="2 times"):
        Template(request, ["twice"])
