"""Custody, admission and the answer seal in memory, for tests and for trying the Router without its peers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from typing_extensions import override

from router.domain.leases import Lease, LeaseQuery, NoKey, Payer
from router.domain.receipts import Settlement
from router.domain.refusals import (
    AnswerNotKeptError,
    CallClosedError,
    CapReachedError,
    KeyRequiredError,
    LeaseEndedError,
    RequestIdReusedError,
)
from router.domain.reservations import Charge, FinalOutcome, Grant, Release, Reserve
from router.ports import Admission, AnswerSeal, KeyAuthority
from servicekit.clock import Clock

if TYPE_CHECKING:
    from router.domain.leases import Account, Outcome
    from router.ports import ValidationReport

_MTOK = 1_000_000


class MemoryKeys(KeyAuthority):
    """Custody of a few leases that a test hands over."""

    def __init__(self) -> None:
        """Start without a key."""
        self.leases: list[Lease] = []
        self.platform: list[Lease] = []
        self.missing: NoKey | None = None
        self.refusal: Exception | None = None
        self.ended: set[str] = set()
        self.queries: list[LeaseQuery] = []
        self.outcomes: list[Outcome] = []
        self.validations: list[ValidationReport] = []

    @override
    async def acquire(self, query: LeaseQuery, /) -> Lease | NoKey:
        self.queries.append(query)
        if self.refusal is not None:
            raise self.refusal
        candidates = self.leases if query.agent_id or query.key_id else self.platform
        for lease in candidates:
            if lease.key_id not in query.excluded_key_ids and query.key_id in {"", lease.key_id}:
                return replace(lease, agent_id=query.agent_id)
        if self.missing is None:
            raise AssertionError
        return replace(self.missing, agent_id=query.agent_id)

    @override
    def ensure_usable(self, lease: Lease, /) -> None:
        if lease.lease_id in self.ended:
            self.ended.discard(lease.lease_id)
            raise LeaseEndedError(rule="authority")

    @override
    def report(self, outcome: Outcome, /) -> None:
        self.outcomes.append(outcome)

    @override
    async def report_validation(self, report: ValidationReport, /) -> bytes:
        self.validations.append(report)
        return b""


@dataclass(slots=True)
class _Operation:
    body_hash: bytes
    final: FinalOutcome | None = None
    attempts: int = 0
    open_calls: dict[int, str] = field(default_factory=dict)
    closed_calls: set[int] = field(default_factory=set)

    def close(self, reservation_id: str) -> None:
        """Note that the call of a reservation is over."""
        for index, each in list(self.open_calls.items()):
            if each == reservation_id:
                del self.open_calls[index]
                self.closed_calls.add(index)


@dataclass(slots=True)
class MemoryAdmission(Admission):
    """Admission against one cost cap, with every hold and settlement kept for a test to look at."""

    clock: Clock
    cap_nano_usd: int = 10**12
    platform_pays: bool = False
    refusal: Exception | None = None
    used_nano_usd: int = 0
    holds: dict[str, int] = field(default_factory=dict)
    reserves: list[Reserve] = field(default_factory=list)
    charges: list[Charge] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    operations: dict[tuple[str, str], _Operation] = field(default_factory=dict)

    @override
    async def reserve(self, reserve: Reserve, /) -> Grant | FinalOutcome:
        if self.refusal is not None:
            raise self.refusal
        attribution = reserve.attribution
        operation = self.operations.setdefault(
            (reserve.request_id, attribution.agent_id), _Operation(reserve.body_hash)
        )
        if operation.body_hash != reserve.body_hash:
            raise RequestIdReusedError
        if operation.final is not None:
            return operation.final
        if reserve.call_index in operation.closed_calls:
            raise CallClosedError
        if attribution.platform_cause is not None and not self.platform_pays:
            raise KeyRequiredError(cause=attribution.platform_cause)
        granted = self._fit(reserve)
        operation.attempts += 1
        self.reserves.append(reserve)
        reservation_id = f"{reserve.request_id}/{operation.attempts}"
        self.holds[reservation_id] = _cost(reserve, granted)
        operation.open_calls[reserve.call_index] = reservation_id
        return Grant(
            reservation_id=reservation_id,
            attempt=operation.attempts,
            granted_output_tokens=granted,
            reserve_time=self.clock.now(),
            payer_rule="static" if attribution.payer is Payer.PLATFORM else "",
        )

    @override
    async def settle(self, charge: Charge, /) -> Settlement:
        self.settle_later(charge)
        return Settlement.SETTLED if charge.usage is not None else Settlement.SUSPENSE

    @override
    def settle_later(self, charge: Charge, /) -> None:
        held = self.holds.pop(charge.grant.reservation_id)
        self.used_nano_usd += held if charge.usage is None else charge.usage.cost_nano_usd
        self.charges.append(charge)
        attribution = charge.reserve.attribution
        operation = self.operations[charge.reserve.request_id, attribution.agent_id]
        operation.close(charge.grant.reservation_id)
        if charge.is_final:
            operation.final = FinalOutcome(
                usage=charge.usage, sealed_answer=charge.sealed_answer, payer=attribution.payer
            )

    @override
    def release_later(self, release: Release, /) -> None:
        del self.holds[release.grant.reservation_id]
        self.releases.append(release)
        attribution = release.reserve.attribution
        self.operations[release.reserve.request_id, attribution.agent_id].close(release.grant.reservation_id)

    @override
    async def lookup(
        self, *, request_id: str, agent_id: str, account: Account | None, body_hash: bytes
    ) -> FinalOutcome | None:
        operation = self.operations.get((request_id, agent_id))
        if operation is not None and operation.body_hash != body_hash:
            raise RequestIdReusedError
        final = operation.final if operation is not None else None
        if final is None and self.refusal is not None:
            raise self.refusal
        return final

    def _fit(self, reserve: Reserve) -> int:
        room = self.cap_nano_usd - self.used_nano_usd - sum(self.holds.values())
        estimate = reserve.estimate
        if _cost(reserve, estimate.output_tokens_max) <= room:
            return estimate.output_tokens_max
        if _cost(reserve, estimate.output_tokens_min) > room:
            raise CapReachedError("The daily cost cap is reached.", limit_id="daily-cost", remaining=max(0, room))
        left = (room - estimate.fixed_cost_nano_usd) * _MTOK
        return left // estimate.output_nano_usd_per_mtok


def _cost(reserve: Reserve, output_tokens: int) -> int:
    estimate = reserve.estimate
    return estimate.fixed_cost_nano_usd + -(-output_tokens * estimate.output_nano_usd_per_mtok // _MTOK)


class MemorySeal(AnswerSeal):
    """A seal that only remembers what it was given."""

    def __init__(self) -> None:
        """Start with nothing sealed."""
        self._sealed: dict[bytes, tuple[str, str, bytes]] = {}

    @override
    def seal(self, answer: bytes, /, *, request_id: str, agent_id: str) -> bytes:
        name = f"sealed-{len(self._sealed)}".encode()
        self._sealed[name] = (request_id, agent_id, answer)
        return name

    @override
    def open(self, sealed: bytes, /, *, request_id: str, agent_id: str) -> bytes:
        bound_to, agent, answer = self._sealed[sealed]
        if (bound_to, agent) != (request_id, agent_id):
            raise AnswerNotKeptError
        return answer
