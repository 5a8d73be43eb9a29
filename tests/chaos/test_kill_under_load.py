"""Kill -9 of each process in turn under load: no settled usage is lost, and none is counted twice.

The provider simulator's ledger says what was charged for; the suite's own says what was booked; every answered call
says what its caller was told. All three must agree.
"""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from testkit.settings import TestkitSettings
from testkit.simulator.client import SimulatorControl
from testkit.stack.customer import Customer, Suite
from testkit.stack.load import Books, Load, Outcome
from testkit.stack.stack import Stack, StackOptions
from testkit.waiting import eventually

pytestmark = pytest.mark.chaos

_CUSTOMERS = 4
_WORKERS = 8
_ROUNDS = TestkitSettings().chaos_rounds
_CALLS_BETWEEN = 25
_TIMEOUT_SECONDS = 4.0
# A killed Metering's turn at the flush ends with its licence, which this makes short.
_LICENCE = {"BYOK_METERING_LICENCE__LIFE": "10", "BYOK_METERING_LICENCE__RENEW": "2"}
_CLOSE_SECONDS = 90


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Run a stack with two Routers, for these tests to break and mend, one process after the other."""
    options = StackOptions(routers=2, is_durable=False, is_kept=False, environment=_LICENCE)
    async with Stack(tmp_path_factory.mktemp("stack"), options=options) as running:
        yield running


def _kill_and_restart(service: str) -> Callable[[Stack], Awaitable[None]]:
    async def act(stack: Stack) -> None:
        stack.kill9(service)
        await stack.start_again(service)

    return act


async def _kill_postgres(stack: Stack) -> None:
    stack.postgres.kill9()
    stack.postgres.start()


async def _kill_redis(stack: Stack) -> None:
    stack.redis.kill9()
    stack.redis.start()


_VICTIMS: dict[str, Callable[[Stack], Awaitable[None]]] = {
    "router": _kill_and_restart("router"),
    "metering": _kill_and_restart("metering"),
    "keyvault": _kill_and_restart("keyvault"),
    "postgres": _kill_postgres,
    "redis": _kill_redis,
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", list(_VICTIMS))
async def test_no_usage_is_lost_or_counted_twice_when_a_process_is_killed(stack: Stack, victim: str) -> None:
    """Load goes on before, during and after; then all books agree, and the suite serves as before."""
    async with Suite(stack) as suite, SimulatorControl(stack.simulator) as control:
        customers = [Customer(suite) for _ in range(_CUSTOMERS)]
        limits = [await _prepare(customer) for customer in customers]
        await control.set_latency(0.02, jitter_seconds=0.02)
        load = Load(customers, workers=_WORKERS, timeout_seconds=_TIMEOUT_SECONDS)
        load.start()
        for _ in range(_ROUNDS):
            await load.wait_for(_CALLS_BETWEEN)
            await _VICTIMS[victim](stack)
            await load.wait_for(_CALLS_BETWEEN, timeout_seconds=120)
        outcomes = await load.stop()
        # Only a Router takes with it what it alone knew: the calls that were in flight.
        lost_max = _WORKERS * _ROUNDS if victim == "router" else 0
        await _close_books(dict(zip(customers, limits, strict=True)), control, outcomes, lost_max=lost_max)


async def _prepare(customer: Customer) -> str:
    """Set a customer up, and return the id of a limit that counts the calls and stops none."""
    await customer.set_up("openai")
    return (await customer.cap(1_000_000)).limit.limit_id


async def _close_books(
    limits: dict[Customer, str], control: SimulatorControl, outcomes: list[Outcome], *, lost_max: int
) -> None:
    """Wait until the books agree. Settlements that a killed process held up arrive late, but arrive.

    A charge that nobody can book any more, since its Router died, stays on every limit: as a hold, then in suspense.
    """
    requests = [outcome.request_id for outcome in outcomes]
    charged = await control.ledger()

    async def disagreements() -> list[str]:
        booked = [entry for customer in limits for entry in await customer.entries()]
        books = Books.read(charged, booked, requests)
        found = books.problems(outcomes)
        usages = [await customer.limit_usage(limit_id) for customer, limit_id in limits.items()]
        counted = sum(usage.settled_amount for usage in usages)
        in_ledger = sum(len(settled) > 0 for settled in books.settled.values())
        if counted != in_ledger:
            found.append(f"the limits count {counted} settled calls, the ledger has {in_ledger}")
        missing = sum(books.unbooked().values())
        on_hold = sum(usage.held_amount + usage.suspense_amount for usage in usages)
        if missing > min(on_hold, lost_max):
            found.append(f"{missing} charged calls are not booked; {on_hold} are held or in suspense")
        return found

    await eventually(disagreements, lambda found: found == [], timeout_seconds=_CLOSE_SECONDS)
