"""Test calls that KeyVault asks for: what they may cost, what is told, and what becomes of failures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from router.domain.answers import ValidationAnswer
from router.domain.errors import ProviderTimeoutError
from router.domain.leases import Account, AccountKind, DueKey
from router.domain.operations import Principal
from router.domain.refusals import SuiteUnavailableError
from router.ports import DueKeys, KeyVerdict
from router.usecases.check_due_keys import CheckDueKeys
from servicekit.errors import DomainError
from services.router.tests.kit import Workbench, completion, failure, reply, vectors, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.domain.wire import WireRequest, WireResponse

AGAIN = timedelta(seconds=7)


def healthy(request: WireRequest) -> WireResponse:
    """Answer as a provider does to a key that works."""
    if request.method == "GET":
        return reply({"object": "list", "data": [{"id": "gpt-4o-mini"}]})
    return vectors(request) if request.url.endswith("/embeddings") else completion(verdict())


def broke(request: WireRequest) -> WireResponse:
    """Answer as a provider does whose customer has no credit: models are listed all the same."""
    return healthy(request) if request.method == "GET" else failure(429, "insufficient_quota")


@dataclass
class DueOnes(DueKeys):
    """KeyVault with keys that are due."""

    due: list[DueKey]
    refusal: DomainError | None = None

    @override
    async def claim_due(self, keys_max: int, /) -> tuple[Sequence[DueKey], timedelta]:
        if self.refusal is not None:
            raise self.refusal
        return self.due[:keys_max], AGAIN


@dataclass
class Told:
    """What came of each key."""

    outcomes: list[tuple[str, ValidationAnswer | DomainError]] = field(default_factory=list)

    def __call__(self, due: DueKey, outcome: ValidationAnswer | DomainError) -> None:
        self.outcomes.append((due.lease.key_id, outcome))


@pytest.fixture
def bench() -> Workbench:
    """Return a Router with a provider that works, and no key but those that it is handed."""
    made = Workbench()
    made.provider.script = [healthy]
    return made


def checker(
    bench: Workbench, *due: DueKey, told: Told | None = None, refusal: DomainError | None = None
) -> CheckDueKeys:
    """Return the use case with these keys due."""
    return CheckDueKeys(
        keys=DueOnes(list(due), refusal),
        validate_key=bench.validate_key,
        clock=bench.clock,
        keys_max=16,
        timeout=timedelta(seconds=30),
        tell=told or Told(),
    )


async def test_a_key_that_works_is_tested_for_free(bench: Workbench) -> None:
    """Its models are listed on the lease that came with it; nothing is asked that costs its owner anything."""
    due = DueKey(lease=bench.lease(), is_free=True)
    assert await checker(bench, due)() == AGAIN
    (report,) = bench.keys.validations
    assert (report.verdict, report.lease.lease_id) == (KeyVerdict.VALID, due.lease.lease_id)
    assert [request.method for request in bench.provider.requests] == ["GET"]
    assert bench.keys.queries == []
    assert bench.admission.reserves == []


@pytest.mark.parametrize("answer", [failure(404), ProviderTimeoutError(provider="openai", rule="slow")])
async def test_a_listing_that_says_nothing_is_not_told(bench: Workbench, answer: WireResponse | Exception) -> None:
    """A key that works goes on as it is when its provider has no listing, or is away."""
    bench.provider.script = [answer]
    told = Told()
    await checker(bench, DueKey(lease=bench.lease(), is_free=True), told=told)()
    assert bench.keys.validations == []
    ((_, outcome),) = told.outcomes
    assert isinstance(outcome, ValidationAnswer)
    assert outcome.verdict is KeyVerdict.INCONCLUSIVE


async def test_a_key_that_works_no_more_is_told(bench: Workbench) -> None:
    """A listing that is refused decides."""
    bench.provider.script = [failure(401, "invalid_api_key")]
    await checker(bench, DueKey(lease=bench.lease(), is_free=True))()
    assert [report.verdict for report in bench.keys.validations] == [KeyVerdict.REJECTED]


async def test_a_key_without_credit_comes_back_by_a_paid_probe_only(bench: Workbench) -> None:
    """Models are listed without credit; the probe is held and settled like any other call."""
    due = DueKey(lease=bench.lease(), is_free=False)
    bench.provider.script = [broke]
    await checker(bench, due)()
    bench.provider.script = [healthy]
    await checker(bench, due)()
    assert [report.verdict for report in bench.keys.validations] == [KeyVerdict.NO_CREDIT, KeyVerdict.VALID]
    assert bench.admission.charges
    assert bench.admission.holds == {}


async def test_a_lease_that_ended_is_taken_anew_for_whoever_owns_the_key(bench: Workbench) -> None:
    """In the owner's name, the organization's or an operator's: KeyVault lets nobody else."""
    owners = {
        AccountKind.OWNER: Principal(owner_id="a"),
        AccountKind.ORGANIZATION: Principal(owner_id="router", organization_ids=("a",)),
        AccountKind.PLATFORM: Principal(operator_id="router"),
    }
    for kind, principal in owners.items():
        lease = replace(bench.lease(), owned_by=Account(kind, "" if kind is AccountKind.PLATFORM else "a"))
        bench.keys.leases = [replace(lease, lease_id="another")]
        bench.keys.ended = {lease.lease_id}
        await checker(bench, DueKey(lease=lease, is_free=True))()
        assert bench.keys.queries[-1].acting_for == principal
        assert bench.keys.validations[-1].lease.lease_id == "another"


async def test_one_failure_is_not_the_others(bench: Workbench) -> None:
    """Each key is told of by itself; a KeyVault that hands out nothing is an error of the whole."""
    bench.keys.refusal = SuiteUnavailableError(service="keyvault")
    ended, sound = bench.lease(), replace(bench.lease(), lease_id="sound", key_id="key-2")
    bench.keys.ended = {ended.lease_id}
    told = Told()
    await checker(bench, *(DueKey(lease=each, is_free=True) for each in (ended, sound)), told=told)()
    outcomes = dict(told.outcomes)
    assert isinstance(outcomes[ended.key_id], SuiteUnavailableError)
    assert isinstance(outcomes["key-2"], ValidationAnswer)
    with pytest.raises(SuiteUnavailableError):
        await checker(bench, refusal=SuiteUnavailableError(service="keyvault"))()
