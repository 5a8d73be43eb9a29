"""Guardrail calls under load, each findable in the provider simulator's ledger and in the suite's own.

The content of every call carries its request id as a marker, so that what was charged can be held against what was
booked, call by call.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import grpc

from byok.metering.v1 import usage_service_pb2
from byok.router.v1 import operation_result_pb2, operation_service_pb2
from servicekit.wire import RemoteError, error_from_rpc
from testkit.simulator.ledger import LedgerEntry
from testkit.stack.customer import Customer, new_request_id
from testkit.waiting import eventually

_RETRY_PAUSE_SECONDS = 0.1
_Tokens = tuple[int, int]


@dataclass(kw_only=True)
class Outcome:
    """What became of one request."""

    request_id: str
    response: operation_service_pb2.EvaluateGuardrailResponse | None = None
    error: RemoteError | None = None
    tries: int = 0

    @property
    def is_settled(self) -> bool:
        """Tell whether the suite said that the charge is booked."""
        return self.response is not None and self.response.receipt.settlement == operation_result_pb2.SETTLEMENT_SETTLED


async def attempt(customer: Customer, *, tries_max: int = 1, timeout_seconds: float = 5) -> Outcome:
    """Make one guardrail call, trying again under the same request id while the suite is unavailable."""
    outcome = Outcome(request_id=new_request_id())
    while outcome.tries < tries_max:
        outcome.tries += 1
        try:
            outcome.response = await customer.evaluate(
                f"Bread for everyone. marker:{outcome.request_id}",
                request_id=outcome.request_id,
                timeout_seconds=timeout_seconds,
            )
        except grpc.aio.AioRpcError as error:
            outcome.error = error_from_rpc(error)
            if not is_worth_a_retry(outcome.error):
                break
            await asyncio.sleep(_RETRY_PAUSE_SECONDS)
        else:
            outcome.error = None
            break
    return outcome


def is_worth_a_retry(error: RemoteError) -> bool:
    """Tell whether the same request may succeed later, as a careful caller would judge."""
    return error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED)


class Load:
    """Workers that call in a closed loop until told to stop."""

    def __init__(
        self, customers: Sequence[Customer], *, workers: int, tries_max: int = 1, timeout_seconds: float = 5
    ) -> None:
        """Prepare; workers share the customers round robin."""
        self.outcomes: list[Outcome] = []
        self._customers = customers
        self._workers = workers
        self._tries_max = tries_max
        self._timeout_seconds = timeout_seconds
        self._stopped = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Let the workers run."""
        self._tasks = [
            asyncio.create_task(self._work(self._customers[number % len(self._customers)]))
            for number in range(self._workers)
        ]

    async def wait_for(self, answered: int, *, timeout_seconds: float = 60) -> None:
        """Wait until this many more requests were answered well."""
        goal = self.answered + answered

        async def count() -> int:
            return self.answered

        await eventually(count, lambda seen: seen >= goal, timeout_seconds=timeout_seconds)

    @property
    def answered(self) -> int:
        """Return how many requests were answered well."""
        return sum(outcome.response is not None for outcome in self.outcomes)

    async def stop(self) -> list[Outcome]:
        """Let the workers finish what they are at, and return all outcomes."""
        self._stopped.set()
        await asyncio.gather(*self._tasks)
        return self.outcomes

    async def _work(self, customer: Customer) -> None:
        while not self._stopped.is_set():
            outcome = await attempt(customer, tries_max=self._tries_max, timeout_seconds=self._timeout_seconds)
            self.outcomes.append(outcome)
            if outcome.error is not None:
                # What is refused at once must not become a busy loop.
                await asyncio.sleep(_RETRY_PAUSE_SECONDS)


@dataclass(kw_only=True)
class Books:
    """What the provider charged for, beside what the suite booked."""

    charged: dict[str, list[_Tokens]] = field(default_factory=lambda: defaultdict(list))
    settled: dict[str, list[_Tokens]] = field(default_factory=lambda: defaultdict(list))
    suspended: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    repeated: list[str] = field(default_factory=list)

    @classmethod
    def read(
        cls, charged: Iterable[LedgerEntry], booked: Iterable[usage_service_pb2.LedgerEntry], requests: Iterable[str]
    ) -> "Books":
        """Sort both ledgers by request; calls of other requests are left out."""
        books, wanted = cls(), set(requests)
        for call in charged:
            if call.is_billed and call.marker in wanted:
                books.charged[call.marker].append((call.input_tokens, call.output_tokens))
        seen: Counter[tuple[str, int]] = Counter()
        for entry in booked:
            if entry.request_id not in wanted:
                continue
            seen[entry.reservation_id, entry.kind] += 1
            if entry.kind == usage_service_pb2.LEDGER_ENTRY_KIND_SETTLEMENT:
                books.settled[entry.request_id].append(_tokens(entry))
            elif entry.kind == usage_service_pb2.LEDGER_ENTRY_KIND_SUSPENSE:
                books.suspended[entry.request_id] += 1
        books.repeated = [
            reservation
            for (reservation, kind), count in seen.items()
            if count > 1 and kind != usage_service_pb2.LEDGER_ENTRY_KIND_ADJUSTMENT
        ]
        return books

    def problems(self, outcomes: Sequence[Outcome]) -> list[str]:
        """Return every way in which the books disagree with each other or with what callers were told."""
        found = [f"reservation {each} is booked twice" for each in self.repeated]
        for request_id, settled in self.settled.items():
            extra = Counter(settled) - Counter(self.charged[request_id])
            if extra:
                found.append(f"{request_id}: settled {dict(extra)}, which nobody charged for")
        found.extend(
            f"{outcome.request_id}: the caller was told SETTLED, but it is not in the ledger"
            for outcome in outcomes
            if outcome.is_settled and not self.settled[outcome.request_id]
        )
        return found

    def unbooked(self) -> dict[str, int]:
        """Return the charged calls that are neither settled nor in suspense, by request."""
        missing = {
            request_id: len(calls) - len(self.settled[request_id]) - self.suspended[request_id]
            for request_id, calls in self.charged.items()
        }
        return {request_id: count for request_id, count in missing.items() if count > 0}


def _tokens(entry: usage_service_pb2.LedgerEntry) -> _Tokens:
    return (
        sum(model.billable.input_tokens for model in entry.usage.models),
        sum(model.billable.output_tokens for model in entry.usage.models),
    )
