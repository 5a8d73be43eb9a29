"""What an emergency stop does to an operation: it holds the content, tries nothing else, and lets nobody else pay."""

import grpc
import pytest

from byok.router.v1.operation_result_pb2 import DISPOSITION_HOLD, OperationFailure
from router.api.errors import TABLE
from router.domain.leases import Account, AccountKind, PlatformCause
from router.domain.receipts import Settlement
from router.domain.refusals import HaltedError
from servicekit.wire import remote_error
from services.router.tests.kit import Workbench, completion, verdict

HALTED = HaltedError(halt_scope="owner/owner-1")


@pytest.fixture
def bench() -> Workbench:
    """Return a Router whose owner has a key that works, with a platform that would pay."""
    made = Workbench()
    made.keys.leases = [made.lease()]
    made.keys.platform = [made.lease("platform-1", owned_by=Account(AccountKind.PLATFORM))]
    made.admission.platform_pays = True
    made.provider.script = [completion(verdict())]
    return made


async def test_a_halted_agent_is_refused_and_its_content_held(bench: Workbench) -> None:
    """Asked once, not retried, nothing reserved, nothing sent, no fallback to the platform's key."""
    bench.keys.refusal = HALTED
    with pytest.raises(HaltedError) as refused:
        await bench.evaluate_guardrail(bench.guardrail(), deadline=bench.deadline)
    assert len(bench.keys.queries) == 1
    assert (bench.admission.reserves, bench.provider.requests) == ([], [])
    status = remote_error(TABLE.status(refused.value))
    assert (status.code, status.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "HALTED")
    assert status.metadata == {"haltScope": "owner/owner-1"}
    assert status.retry_after is None
    failure = status.detail(OperationFailure)
    assert failure is not None
    assert (failure.disposition, failure.retryable) == (DISPOSITION_HOLD, False)


async def test_a_halt_between_the_lease_and_the_first_byte_is_told(bench: Workbench) -> None:
    """The lease ended, its hold is released, and the next lease says why: nothing was sent."""
    (lease,) = bench.keys.leases
    bench.keys.ended.add(lease.lease_id)
    reserved = bench.admission.reserve

    async def halt_meanwhile(reserve: object) -> object:
        bench.keys.refusal = HALTED
        return await reserved(reserve)  # type: ignore[arg-type]  # what it was called with

    bench.admission.reserve = halt_meanwhile  # type: ignore[method-assign, assignment]  # a fake that is told to
    with pytest.raises(HaltedError) as refused:
        await bench.evaluate_guardrail(bench.guardrail(), deadline=bench.deadline)
    assert bench.provider.requests == []
    assert bench.admission.holds == {}
    assert refused.value.report is not None
    assert refused.value.report.settlement is Settlement.RELEASED
    assert not refused.value.report.retryable


async def test_a_halt_of_the_platform_is_told_to_an_agent_without_a_key(bench: Workbench) -> None:
    """The agent has no key, and the platform's is halted: held, and not told to add a key."""
    bench.keys.leases = []
    bench.keys.missing = bench.no_key(PlatformCause.NO_KEY)
    acquire = bench.keys.acquire

    async def platform_halted(query: object) -> object:
        if not query.agent_id:  # type: ignore[attr-defined]  # a query
            raise HaltedError(halt_scope="platform")
        return await acquire(query)  # type: ignore[arg-type]  # as above

    bench.keys.acquire = platform_halted  # type: ignore[method-assign, assignment]  # a fake that is told to
    with pytest.raises(HaltedError):
        await bench.evaluate_guardrail(bench.guardrail(), deadline=bench.deadline)
    assert bench.admission.reserves == []
