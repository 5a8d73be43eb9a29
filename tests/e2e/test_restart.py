"""A stack that was stopped and started again goes on where it was: keys, ledger and caps are what they were."""

from pathlib import Path

import grpc
import pytest

from byok.router.v1 import operation_service_pb2
from testkit.stack.customer import Customer, Suite
from testkit.stack.load import attempt
from testkit.stack.refusals import refusal
from testkit.stack.stack import Stack, StackOptions
from testkit.waiting import eventually

_TRIES_MAX = 200
_OPTIONS = StackOptions(is_durable=False)


@pytest.mark.timeout(200)
async def test_a_restarted_stack_goes_on_where_it_was(tmp_path: Path) -> None:
    """Stop everything, start it in the same folder: the key opens, the books are kept, the cap counts on."""
    name = "restarted"
    async with Stack(tmp_path, options=_OPTIONS) as stack, Suite(stack) as suite:
        customer = Customer(suite, name=name)
        await customer.set_up("openai")
        await customer.cap(3)
        first = await customer.evaluate("One.")
        await customer.evaluate("Two.")
        await customer.wait_for_entries(4)
        spent = (await customer.summary()).settled_cost_nano_usd
    async with Stack(tmp_path, options=_OPTIONS) as stack, Suite(stack) as suite:
        customer = Customer(suite, name=name)
        assert (await customer.summary()).settled_cost_nano_usd == spent
        third = await attempt(customer, tries_max=_TRIES_MAX, timeout_seconds=20)
        assert third.response is not None
        assert third.response.verdict == operation_service_pb2.GUARDRAIL_VERDICT_ALLOW
        denied = await refusal(customer.evaluate("Four."))
        assert (denied.code, denied.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CAP_REACHED")
        wanted = {first.request_id, third.request_id}
        await eventually(customer.entries, lambda seen: {entry.request_id for entry in seen} >= wanted)
