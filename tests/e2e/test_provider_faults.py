"""Whatever a provider does, the caller gets a typed answer in time, and what was charged for is accounted for."""

import asyncio

import grpc
import pytest

from byok.router.v1 import operation_result_pb2
from testkit.simulator.client import SimulatorControl
from testkit.simulator.faults import FaultKind
from testkit.simulator.ledger import key_fingerprint
from testkit.stack.customer import Customer, Suite, new_request_id
from testkit.stack.load import Outcome, attempt
from testkit.stack.refusals import refusal

_TIMEOUT_SECONDS = 6
_SIZE_BYTES = 48 * 1024 * 1024
_AT_ONCE = 6

_UNREACHABLE = {"PROVIDERS_EXHAUSTED"}
# What the caller must be told, whichever vendor says it in whichever words.
_REASONS: dict[FaultKind, set[str]] = {
    FaultKind.BAD_KEY: {"PROVIDER_KEY_REJECTED"},
    FaultKind.NO_CREDIT: {"PROVIDER_NO_CREDIT"},
    FaultKind.PAYMENT_REQUIRED: {"PROVIDER_NO_CREDIT"},
    FaultKind.FORBIDDEN: {"MODEL_UNAVAILABLE", "PROVIDER_KEY_REJECTED"},
    FaultKind.CONTENT_REFUSED: {"CONTENT_REFUSED"},
    FaultKind.MODEL_GONE: {"MODEL_UNAVAILABLE"},
    FaultKind.TOO_LARGE: {"PROVIDER_REQUEST_REFUSED"},
    FaultKind.BAD_REQUEST: {"PROVIDER_REQUEST_REFUSED"},
    FaultKind.THROTTLED: {"PROVIDER_RATE_LIMITED"},
    FaultKind.DAILY_QUOTA: {"PROVIDER_RATE_LIMITED"},
    FaultKind.REFUSAL: {"CONTENT_REFUSED"},
    FaultKind.OFF_SCHEMA: {"ANSWER_MALFORMED"},
    FaultKind.CUT_SHORT: {"ANSWER_MALFORMED"},
    FaultKind.EMPTY_ANSWER: {"ANSWER_MALFORMED"},
    FaultKind.REDIRECT: {"EGRESS_REFUSED"},
    FaultKind.ECHO_KEY: {"PROVIDER_KEY_REJECTED", "PROVIDER_REQUEST_REFUSED"},
}
# Ollama has no words of its own for these, or other ones; the answer must be typed all the same.
_OTHERWISE_AT_OLLAMA = frozenset({FaultKind.CONTENT_REFUSED, FaultKind.NO_CREDIT, FaultKind.REFUSAL})
_ACCOUNTED = {
    operation_result_pb2.SETTLEMENT_SETTLED,
    operation_result_pb2.SETTLEMENT_PENDING,
    operation_result_pb2.SETTLEMENT_SUSPENSE,
}


@pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama"])
async def test_every_fault_is_answered_in_time_and_accounted_for(
    suite: Suite, simulator_control: SimulatorControl, provider: str
) -> None:
    """Never INTERNAL, never silent, never free: one owner meets each fault, on every call of theirs."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def meet(kind: FaultKind) -> list[str]:
        async with turns:
            return await _meet(Customer(suite), simulator_control, provider, kind)

    found = await asyncio.gather(*(meet(kind) for kind in FaultKind))
    assert [problem for problems in found for problem in problems] == []


@pytest.mark.parametrize("kind", [FaultKind.SERVER_ERROR, FaultKind.RESET_AFTER_READ, FaultKind.MALFORMED_JSON])
async def test_a_caller_may_come_again_under_the_same_request_id(
    customer: Customer, simulator_control: SimulatorControl, kind: FaultKind
) -> None:
    """A failure that is not final leaves the id free: the next try is served, the one after gets the same answer."""
    await customer.set_up("openai")
    fingerprint = key_fingerprint(customer.secret("openai"))
    request_id = new_request_id()
    await simulator_control.add_fault(kind, key_fingerprint=fingerprint, times=None, retry_form="none")
    assert (await refusal(customer.evaluate(request_id=request_id))).reason == "PROVIDERS_EXHAUSTED"
    await simulator_control.clear_faults()
    served = await customer.evaluate(request_id=request_id)
    assert not served.receipt.is_replay
    again = await customer.evaluate(request_id=request_id)
    assert again.receipt.is_replay


async def _meet(customer: Customer, control: SimulatorControl, provider: str, kind: FaultKind) -> list[str]:
    # Ollama takes any token, so that each owner's calls can be told apart there too.
    secret = customer.secret("openai" if provider == "ollama" else provider)
    await customer.set_up(provider, secret=secret)
    fingerprint = key_fingerprint(secret)
    before = (await control.ledger())[-1].call_id
    await control.add_fault(
        kind,
        key_fingerprint=fingerprint,
        times=None,
        retry_form="none",
        delay_seconds=60,
        size_bytes=_SIZE_BYTES,
    )
    loop = asyncio.get_running_loop()
    started = loop.time()
    outcome = await attempt(customer, timeout_seconds=_TIMEOUT_SECONDS)
    took = loop.time() - started
    calls = [entry for entry in await control.ledger(after=before) if entry.key_fingerprint == fingerprint]
    problems = _judge(provider, kind, outcome, is_charged=any(entry.is_billed for entry in calls))
    if not calls:
        problems.append("the provider was never called")
    if took > _TIMEOUT_SECONDS + 1:
        problems.append(f"took {took:.1f} s")
    return [f"{provider} {kind}: {problem}" for problem in problems]


def _judge(provider: str, kind: FaultKind, outcome: Outcome, *, is_charged: bool) -> list[str]:
    if outcome.response is not None:
        settlement = outcome.response.receipt.settlement
        return [] if kind is FaultKind.NO_USAGE and settlement in _ACCOUNTED else ["was taken for an answer"]
    error = outcome.error
    assert error is not None
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED and kind not in _REASONS:
        # On a busy machine the caller's own clock may be the first to say it; where there is no answer, callers hold.
        return []
    expected = _REASONS.get(kind, _UNREACHABLE)
    if provider == "ollama" and kind in _OTHERWISE_AT_OLLAMA:
        expected = {"PROVIDER_REQUEST_REFUSED", "PROVIDER_RATE_LIMITED", "ANSWER_MALFORMED"}
    if error.reason not in expected:
        return [f"says {error.code.name} {error.reason}: {error.message}"]
    failure = error.detail(operation_result_pb2.OperationFailure)
    if failure is None or failure.disposition != operation_result_pb2.DISPOSITION_HOLD:
        return ["does not say HOLD"]
    if is_charged and failure.settlement not in _ACCOUNTED:
        return [f"was charged for, but is {operation_result_pb2.Settlement.Name(failure.settlement)}"]
    return []
