"""What the suite is for: an owner's own key pays for their agent's operations, within caps, until it is revoked."""

import math
import uuid

import grpc
import pytest
from google.rpc import error_details_pb2

from byok.keyvault.v1 import provider_key_pb2
from byok.router.v1 import operation_result_pb2, operation_service_pb2, provider_service_pb2
from byok.type.v1 import account_pb2, operation_pb2
from servicekit.wire import RemoteError
from testkit.simulator.client import SimulatorControl
from testkit.simulator.ledger import key_fingerprint
from testkit.simulator.vendors import VENDORS
from testkit.stack.customer import Customer, new_request_id
from testkit.stack.refusals import refusal


async def _calls(control: SimulatorControl, secret: str) -> int:
    entries = await control.ledger()
    return sum(entry.key_fingerprint == key_fingerprint(secret) for entry in entries)


async def test_the_whole_story(customer: Customer, simulator_control: SimulatorControl) -> None:
    """Register, add a key, validate it, judge, embed, read the ledger, meet the cap, revoke, be refused."""
    agent = await customer.register()
    assert agent.account == customer.account
    key = await customer.add_key("openai")
    assert key.state == provider_key_pb2.KEY_STATE_PENDING_VALIDATION
    assert customer.secret("openai") not in repr(key)

    validated = await customer.validate(key.key_id)
    assert validated.verdict == provider_service_pb2.KEY_VERDICT_VALID
    assert validated.key.state == provider_key_pb2.KEY_STATE_ACTIVE
    covered = {each.operation for each in validated.coverage if each.covered}
    assert {operation_pb2.OPERATION_GUARDRAIL_EVALUATION, operation_pb2.OPERATION_EMBEDDING_GENERATION} <= covered

    good = await customer.evaluate("A recipe for bread.")
    assert good.disposition == operation_result_pb2.DISPOSITION_PROCEED
    assert good.verdict == operation_service_pb2.GUARDRAIL_VERDICT_ALLOW
    bad_text = "Buy FORBIDDEN goods here."
    bad = await customer.evaluate(bad_text)
    assert bad.disposition == operation_result_pb2.DISPOSITION_PROCEED
    assert bad.verdict == operation_service_pb2.GUARDRAIL_VERDICT_BLOCK
    for quote in bad.quotes:
        assert bad_text[quote.start_char : quote.end_char] == quote.text
    assert good.receipt.payer == account_pb2.PAYER_OWNER
    assert good.receipt.key_id == key.key_id
    assert good.receipt.usage.cost_nano_usd > 0

    embedded = await customer.embed(["bread", "butter"])
    assert embedded.space.dimensions == 1024
    for each in embedded.embeddings:
        assert len(each.values) == 1024
        assert math.isclose(sum(value * value for value in each.values), 1, rel_tol=1e-3)

    await _check_books(customer, good, bad)

    await customer.cap(2)
    calls = await _calls(simulator_control, customer.secret("openai"))
    denied = await refusal(customer.evaluate("One more."))
    _check_cap(denied)
    assert await _calls(simulator_control, customer.secret("openai")) == calls

    await customer.revoke(key.key_id)
    after = await refusal(customer.embed(["too late"]))
    assert after.code == grpc.StatusCode.FAILED_PRECONDITION
    assert after.reason in ("BYOK_KEY_REQUIRED", "PROVIDER_KEY_REVOKED")
    failure = after.detail(operation_result_pb2.OperationFailure)
    assert failure is not None
    assert failure.disposition == operation_result_pb2.DISPOSITION_HOLD
    assert await _calls(simulator_control, customer.secret("openai")) == calls


async def _check_books(customer: Customer, *answers: operation_service_pb2.EvaluateGuardrailResponse) -> None:
    """Hold the ledger against what the answers said, entry by entry and in sum."""
    # Two probes of the validation, two evaluations and an embedding.
    entries = await customer.wait_for_entries(5)
    by_request = {entry.request_id: entry for entry in entries}
    for answer in answers:
        entry = by_request[answer.request_id]
        assert entry.usage.cost_nano_usd == answer.receipt.usage.cost_nano_usd
        assert entry.key_id == answer.receipt.key_id
        assert entry.lease_id == answer.receipt.lease_id
    summary = await customer.summary()
    assert summary.settled_cost_nano_usd == sum(entry.usage.cost_nano_usd for entry in entries)


@pytest.mark.parametrize("provider", list(VENDORS))
async def test_every_provider_judges_on_the_owners_key(customer: Customer, provider: str) -> None:
    """Key, validation and verdict work with each vendor's own wire format, and the cost is known."""
    key = await customer.set_up(provider)
    assert key.state == provider_key_pb2.KEY_STATE_ACTIVE
    answer = await customer.evaluate("Buy FORBIDDEN goods here.")
    assert answer.verdict == operation_service_pb2.GUARDRAIL_VERDICT_BLOCK
    assert answer.receipt.provider == provider
    assert answer.receipt.usage.models[0].billable.input_tokens > 0
    if provider != "ollama":
        assert answer.receipt.usage.cost_nano_usd > 0


async def test_the_same_request_is_bought_once(customer: Customer, simulator_control: SimulatorControl) -> None:
    """A repetition gets the same answer without another provider call; another body under the id is refused."""
    await customer.set_up("openai")
    request_id = new_request_id()
    marker = f"marker:{uuid.uuid4().hex}"
    first = await customer.evaluate(f"Bread. {marker}", request_id=request_id)
    again = await customer.evaluate(f"Bread. {marker}", request_id=request_id)
    assert again.receipt.is_replay
    assert (again.verdict, again.score) == (first.verdict, first.score)
    assert len(await simulator_control.ledger(marker=marker.removeprefix("marker:"))) == 1
    reused = await refusal(customer.evaluate("Something else.", request_id=request_id))
    assert (reused.code, reused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


@pytest.mark.parametrize(
    ("fault", "reason", "state"),
    [
        ("bad_key", "PROVIDER_KEY_REJECTED", provider_key_pb2.KEY_STATE_FAILING),
        ("no_credit", "PROVIDER_NO_CREDIT", provider_key_pb2.KEY_STATE_NO_CREDIT),
        ("content_refused", "CONTENT_REFUSED", provider_key_pb2.KEY_STATE_ACTIVE),
    ],
)
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_what_the_provider_says_reaches_the_caller_and_the_key(
    customer: Customer,
    simulator_control: SimulatorControl,
    provider: str,
    fault: str,
    reason: str,
    state: provider_key_pb2.KeyState.ValueType,
) -> None:
    """A final refusal is typed, charges nothing, and changes the key's state only where it should."""
    await customer.register()
    key = await customer.add_key(provider)
    spent = (await customer.validate(key.key_id)).receipt.usage.cost_nano_usd
    await customer.wait_for_cost(spent)
    await simulator_control.add_fault(fault, key_fingerprint=key_fingerprint(customer.secret(provider)), times=None)
    error = await refusal(customer.evaluate())
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
    failure = error.detail(operation_result_pb2.OperationFailure)
    assert failure is not None
    assert failure.disposition == operation_result_pb2.DISPOSITION_HOLD
    await simulator_control.clear_faults()
    await customer.wait_for_cost(spent)
    if state == provider_key_pb2.KEY_STATE_ACTIVE:
        # A refusal of the content says nothing of the key: it serves the next call.
        await customer.evaluate()
    else:
        await customer.wait_for_state(key.key_id, state)


def _check_cap(error: RemoteError) -> None:
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CAP_REACHED")
    assert error.retry_after is None
    quota = error.detail(error_details_pb2.QuotaFailure)
    assert quota is not None
    assert quota.violations
    assert error.metadata["limitId"]
    failure = error.detail(operation_result_pb2.OperationFailure)
    assert failure is not None
    assert failure.disposition == operation_result_pb2.DISPOSITION_HOLD
