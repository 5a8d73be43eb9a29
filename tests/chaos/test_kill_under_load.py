"""Kill -9 of each process in turn under load: no settled usage is lost, and none is counted twice.

The provider simulator's ledger says what was charged for; the suite's own says what was booked; every answered call
says what its caller was told. All three must agree.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

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
# Settlements that a killed process held up arrive within seconds; then the books stand still.
_STILL_SECONDS = 1.0
_STILL_READINGS = 8


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """Run a stack with two Routers, for this test to break."""
    async with Stack(tmp_path, options=StackOptions(routers=2, is_durable=False)) as running:
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
        books = await _closed_books(customers, control, outcomes)
        assert books.problems(outcomes) == []
        missing = sum(books.unbooked().values())
        usages = [await customer.limit_usage(limit) for customer, limit in zip(customers, limits, strict=True)]
        settled = sum(usage.settled_amount for usage in usages)
        assert settled == sum(len(each) > 0 for each in books.settled.values())
        # What was in flight when a Router died stays on every limit: as a hold, then in suspense at its estimate.
        assert missing <= sum(usage.held_amount + usage.suspense_amount for usage in usages)
        assert missing <= (_WORKERS * _ROUNDS if victim == "router" else 0)


async def _prepare(customer: Customer) -> str:
    """Set a customer up, and return the id of a limit that counts the calls and stops none."""
    await customer.set_up("openai")
    return (await customer.cap(1_000_000)).limit.limit_id


async def _closed_books(customers: list[Customer], control: SimulatorControl, outcomes: list[Outcome]) -> Books:
    """Return the books once every charge is booked, or once nothing has moved in them for a while."""
    requests = [outcome.request_id for outcome in outcomes]
    charged = await control.ledger()
    lengths: list[int] = []

    async def read() -> Books:
        booked = [entry for customer in customers for entry in await customer.entries()]
        lengths.append(len(booked))
        await asyncio.sleep(_STILL_SECONDS)
        return Books.read(charged, booked, requests)

    def is_closed(books: Books) -> bool:
        last = lengths[-_STILL_READINGS:]
        return not books.unbooked() or (len(last) == _STILL_READINGS and len(set(last)) == 1)

    return await eventually(read, is_closed, timeout_seconds=60)
