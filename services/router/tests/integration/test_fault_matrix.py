"""Every fault of the provider simulator, over the real transport: what the caller is told, and what becomes of money.

The simulator keeps its own books. Whatever happens to a call, what it charges for is never released here.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from router.api.errors import TABLE
from router.domain.leases import OutcomeKind
from router.domain.receipts import Settlement
from router.domain.refusals import (
    AnswerMalformedError,
    ContentHeldError,
    EgressForbiddenError,
    ModelUnavailableError,
    ProviderKeyRejectedError,
    ProviderNoCreditError,
    ProviderRateLimitedError,
    ProviderRequestRefusedError,
    ProvidersExhaustedError,
    RouterError,
)
from router.ports import ProviderTransport
from router.transports.direct import TransportLimits, open_direct_transport
from servicekit.clock import SystemClock
from services.router.tests.kit import LIMITS, Workbench
from testkit.pki import ThrowawayCa
from testkit.simulator.addresses import Addresses
from testkit.simulator.client import SimulatorControl
from testkit.simulator.faults import FaultKind
from testkit.simulator.ledger import key_fingerprint
from testkit.simulator.process import SimulatorProcess
from testkit.simulator.vendors import make_key

CLOCK = SystemClock()
# One attempt, and a short one: what a second attempt does is told elsewhere, without waiting.
ONE_ATTEMPT = replace(LIMITS, attempts_max=1, attempt_timeout=timedelta(seconds=1))
WIRE = TransportLimits(
    connect_timeout=timedelta(seconds=2),
    answer_bytes_max=1_000_000,
    connections_max=20,
    connections_per_host_max=20,
    idle_timeout=timedelta(seconds=5),
)
EXPECTED: dict[FaultKind, type[RouterError]] = {
    FaultKind.BAD_KEY: ProviderKeyRejectedError,
    FaultKind.ECHO_KEY: ProviderKeyRejectedError,
    FaultKind.NO_CREDIT: ProviderNoCreditError,
    FaultKind.PAYMENT_REQUIRED: ProviderNoCreditError,
    FaultKind.FORBIDDEN: ModelUnavailableError,
    FaultKind.MODEL_GONE: ModelUnavailableError,
    FaultKind.CONTENT_REFUSED: ContentHeldError,
    FaultKind.REFUSAL: ContentHeldError,
    FaultKind.TOO_LARGE: ProviderRequestRefusedError,
    FaultKind.BAD_REQUEST: ProviderRequestRefusedError,
    FaultKind.THROTTLED: ProviderRateLimitedError,
    FaultKind.DAILY_QUOTA: ProviderRateLimitedError,
    FaultKind.TIMED_OUT: ProvidersExhaustedError,
    FaultKind.CONFLICT: ProvidersExhaustedError,
    FaultKind.SERVER_ERROR: ProvidersExhaustedError,
    FaultKind.BAD_GATEWAY: ProvidersExhaustedError,
    FaultKind.UNAVAILABLE: ProvidersExhaustedError,
    FaultKind.OVERLOADED: ProvidersExhaustedError,
    FaultKind.ERROR_IN_200: ProvidersExhaustedError,
    FaultKind.OFF_SCHEMA: AnswerMalformedError,
    FaultKind.CUT_SHORT: AnswerMalformedError,
    FaultKind.EMPTY_ANSWER: AnswerMalformedError,
    FaultKind.MALFORMED_JSON: ProvidersExhaustedError,
    FaultKind.TRUNCATED_BODY: ProvidersExhaustedError,
    FaultKind.EMPTY_BODY: ProvidersExhaustedError,
    FaultKind.WRONG_CONTENT_TYPE: ProvidersExhaustedError,
    FaultKind.HUGE_BODY: ProvidersExhaustedError,
    FaultKind.DECOMPRESSION_BOMB: ProvidersExhaustedError,
    FaultKind.DELAY: ProvidersExhaustedError,
    FaultKind.SLOW_HEADERS: ProvidersExhaustedError,
    FaultKind.RESET_BEFORE_READ: ProvidersExhaustedError,
    FaultKind.RESET_AFTER_READ: ProvidersExhaustedError,
    FaultKind.REDIRECT: EgressForbiddenError,
}
KEY_STATES = {
    FaultKind.BAD_KEY: OutcomeKind.KEY_REJECTED,
    FaultKind.ECHO_KEY: OutcomeKind.KEY_REJECTED,
    FaultKind.NO_CREDIT: OutcomeKind.NO_CREDIT,
    FaultKind.PAYMENT_REQUIRED: OutcomeKind.NO_CREDIT,
}
STATE_MOVING = (ProviderKeyRejectedError, ProviderNoCreditError)
OWN_EXPECTED: dict[tuple[str, FaultKind], type[RouterError]] = {
    # The simulator echoes the key in an invalid_request_error, and the body goes before the status.
    ("anthropic", FaultKind.ECHO_KEY): ProviderRequestRefusedError,
    # A vendor without a field for refusals can only refuse in words, which are no verdict.
    ("together", FaultKind.REFUSAL): AnswerMalformedError,
}
VENDORS = ("openai", "anthropic", "together")


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Addresses, Path]]:
    """Run a simulator over TLS; return where it is and who vouches for it."""
    folder = tmp_path_factory.mktemp("simulator")
    ca = ThrowawayCa(folder)
    with SimulatorProcess(folder / "run", tls=ca.issue("simulator")) as addresses:
        yield addresses, ca.ca_file


@pytest.fixture
async def transport(simulator: tuple[Addresses, Path]) -> AsyncIterator[ProviderTransport]:
    """Return the real transport, allowed to reach the simulator."""
    addresses, ca_file = simulator
    async with open_direct_transport(
        allowed_hosts=tuple(addresses.hosts), limits=WIRE, clock=CLOCK, extra_ca_file=ca_file
    ) as opened:
        yield opened


def bench_of(
    simulator: tuple[Addresses, Path], transport: ProviderTransport, *, vendor: str, fault: str
) -> tuple[Workbench, str]:
    """Return a Router whose only key meets a fault, and that key."""
    bench = Workbench(clock=CLOCK, transport=transport, limits=ONE_ATTEMPT)  # type: ignore[arg-type]  # real time here
    secret = make_key(vendor, fault, fault=fault)
    bench.keys.leases = [bench.lease(provider=vendor, base_url=simulator[0].base_url(vendor), secret=secret)]
    return bench, secret


async def billed_calls(simulator: tuple[Addresses, Path], secret: str) -> int:
    """Return how many calls with this key the provider charges for."""
    async with SimulatorControl(simulator[0]) as control:
        entries = await control.ledger()
    return sum(entry.is_billed for entry in entries if entry.key_fingerprint == key_fingerprint(secret))


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("fault", EXPECTED, ids=str)
async def test_a_fault_is_typed_and_never_loses_money(
    simulator: tuple[Addresses, Path], transport: ProviderTransport, vendor: str, fault: FaultKind
) -> None:
    """The failure is the documented one, the key's state moves only when it should, and billed calls stay charged."""
    bench, secret = bench_of(simulator, transport, vendor=vendor, fault=fault.value)
    with pytest.raises(RouterError) as failed:
        await bench.evaluate_guardrail(bench.guardrail(), deadline=bench.deadline)
    expected = OWN_EXPECTED.get((vendor, fault), EXPECTED[fault])
    assert type(failed.value) is expected
    assert bench.admission.holds == {}
    assert len(bench.admission.charges) >= await billed_calls(simulator, secret)
    moved = {outcome.kind for outcome in bench.keys.outcomes} & set(KEY_STATES.values())
    assert moved == ({KEY_STATES[fault]} if expected in STATE_MOVING else set())
    told = str(TABLE.status(failed.value)) + repr(failed.value) + repr(vars(failed.value))
    assert secret not in told
    assert secret[4:20] not in told


@pytest.mark.parametrize("vendor", VENDORS)
async def test_an_answer_without_usage_stays_at_its_estimate(
    simulator: tuple[Addresses, Path], transport: ProviderTransport, vendor: str
) -> None:
    """The verdict is usable; the charge waits in suspense."""
    bench, _ = bench_of(simulator, transport, vendor=vendor, fault=FaultKind.NO_USAGE.value)
    answer = await bench.evaluate_guardrail(bench.guardrail(), deadline=bench.deadline)
    assert answer.receipt.settlement is Settlement.SUSPENSE
    assert bench.admission.used_nano_usd > 0


@pytest.mark.parametrize("vendor", VENDORS)
async def test_what_is_reserved_covers_what_is_used(
    simulator: tuple[Addresses, Path], transport: ProviderTransport, vendor: str
) -> None:
    """The bound holds against the simulator's count, and the settlement is the simulator's bill."""
    bench, secret = bench_of(simulator, transport, vendor=vendor, fault="")
    content = "ünïcödé 🙂 漢字 " * 50
    answer = await bench.evaluate_guardrail(bench.guardrail(content), deadline=bench.deadline)
    usage = answer.receipt.usage
    assert usage is not None
    reserve = bench.admission.reserves[0]
    assert usage.models[0].billable.input_tokens <= reserve.estimate.input_tokens
    assert usage.models[0].billable.output_tokens <= reserve.estimate.output_tokens_max
    async with SimulatorControl(simulator[0]) as control:
        entry = next(each for each in await control.ledger() if each.key_fingerprint == key_fingerprint(secret))
    assert (entry.input_tokens, entry.output_tokens) == (
        usage.models[0].billable.input_tokens,
        usage.models[0].billable.output_tokens,
    )


async def test_a_repeated_success_is_paid_once(simulator: tuple[Addresses, Path], transport: ProviderTransport) -> None:
    """A retry of the caller's buys nothing at the provider."""
    bench, secret = bench_of(simulator, transport, vendor="groq", fault="")
    request = bench.guardrail()
    with suppress(RouterError):
        for _ in range(3):
            await bench.evaluate_guardrail(request, deadline=bench.deadline)
    assert await billed_calls(simulator, secret) == 1
