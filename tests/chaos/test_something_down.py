"""While a part is down content is held with a typed error and nothing is bought; when it is back, calls are served."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import grpc
import pytest
import pytest_asyncio

from byok.router.v1 import operation_result_pb2
from testkit.simulator.client import SimulatorControl
from testkit.stack.customer import Customer, Suite
from testkit.stack.load import Outcome, attempt
from testkit.stack.stack import Stack, StackOptions
from testkit.waiting import eventually

pytestmark = pytest.mark.chaos

_LICENCE = {"BYOK_METERING_LICENCE__LIFE": "5", "BYOK_METERING_LICENCE__RENEW": "1"}
_ATTEMPTS_WHILE_DOWN = 5
# Cached leases last for the partition bound, admission for the licence; a busy machine adds to both.
_HELD_SECONDS = 30
_BACK_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What can be down, and how it is brought down and back."""

    down: Callable[[Stack], None]
    up: Callable[[Stack], Awaitable[None]]


async def _start_postgres(stack: Stack) -> None:
    stack.postgres.start()


async def _start_redis(stack: Stack) -> None:
    stack.redis.start()


_PARTS = {
    "keyvault": _Part(down=lambda stack: stack.kill9("keyvault"), up=lambda stack: stack.start_again("keyvault")),
    "metering": _Part(down=lambda stack: stack.kill9("metering"), up=lambda stack: stack.start_again("metering")),
    "postgres": _Part(down=lambda stack: stack.postgres.kill9(), up=_start_postgres),
    "redis": _Part(down=lambda stack: stack.redis.kill9(), up=_start_redis),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Run a stack for these tests to break and mend."""
    options = StackOptions(is_durable=False, is_kept=False, environment=_LICENCE)
    async with Stack(tmp_path_factory.mktemp("stack"), options=options) as running:
        yield running


@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", list(_PARTS))
async def test_content_is_held_while_a_part_is_down(stack: Stack, part: str) -> None:
    """Within its bound every call is refused as unavailable, unbought; afterwards calls are served again."""
    async with Suite(stack) as suite, SimulatorControl(stack.simulator) as control:
        customer = Customer(suite)
        await customer.set_up("openai")
        _PARTS[part].down(stack)
        first = await eventually(lambda: attempt(customer), _is_refused, timeout_seconds=_HELD_SECONDS)
        refused = [first, *[await attempt(customer) for _ in range(_ATTEMPTS_WHILE_DOWN)]]
        await _PARTS[part].up(stack)
        await eventually(lambda: attempt(customer), lambda seen: not _is_refused(seen), timeout_seconds=_BACK_SECONDS)
        billed = {entry.marker for entry in await control.ledger() if entry.is_billed}
    assert [_judge(outcome) for outcome in refused] == [""] * len(refused)
    assert billed.isdisjoint(outcome.request_id for outcome in refused[1:])


def _is_refused(outcome: Outcome) -> bool:
    return outcome.response is None


def _judge(outcome: Outcome) -> str:
    """Return what is wrong with an outcome while a part is down; nothing, if it is refused as it should be."""
    error = outcome.error
    if error is None:
        return "was served"
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ""
    failure = error.detail(operation_result_pb2.OperationFailure)
    if (error.code, error.reason) != (grpc.StatusCode.UNAVAILABLE, "SUITE_UNAVAILABLE"):
        return f"{error.code.name} {error.reason}"
    return "" if failure and failure.disposition == operation_result_pb2.DISPOSITION_HOLD else "does not say HOLD"
