"""What a validation finds, tells KeyVault, and pays for."""

import asyncio
from datetime import timedelta

import pytest

from catalogue.models import Operation
from router.domain.errors import ProviderTimeoutError
from router.domain.leases import Account, AccountKind, PlatformCause
from router.domain.refusals import CapReachedError, CustodyLogRolledBackError, SuiteUnavailableError
from router.domain.wire import WireRequest, WireResponse
from router.ports import KeyVerdict
from services.router.tests.kit import Workbench, completion, failure, reply, vectors, verdict

MODELS = ("gpt-4o-mini", "text-embedding-3-small")


def healthy(request: WireRequest) -> WireResponse:
    """Answer as a provider does to a key that works."""
    if request.method == "GET":
        return reply({"object": "list", "data": [{"id": name} for name in MODELS]})
    return vectors(request) if request.url.endswith("/embeddings") else completion(verdict())


@pytest.fixture
def bench() -> Workbench:
    """Return a Router whose owner has one key that works."""
    made = Workbench()
    made.keys.leases = [made.lease()]
    made.provider.script = [healthy]
    return made


async def test_a_key_that_works_is_valid_and_its_cover_is_told(bench: Workbench) -> None:
    """Models are listed, one probe of each kind is paid for as KEY_VALIDATION, and KeyVault is told at once."""
    answer = await bench.validate_key(bench.validation(), deadline=bench.deadline)
    assert answer.verdict == KeyVerdict.VALID
    assert answer.models == MODELS
    covered = {each.operation for each in answer.coverage if each.is_covered}
    assert {Operation.GUARDRAIL_EVALUATION, Operation.EMBEDDING_GENERATION} <= covered
    report = bench.keys.validations[0]
    assert (report.verdict, set(report.operations)) == (KeyVerdict.VALID, covered)
    assert {reserve.attribution.operation for reserve in bench.admission.reserves} == {Operation.KEY_VALIDATION}
    assert [charge.is_final for charge in bench.admission.charges] == [False, True]
    assert bench.keys.outcomes == []
    assert bench.admission.holds == {}
    assert answer.receipt is not None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (failure(401, "invalid_api_key"), KeyVerdict.REJECTED),
        (failure(429, "insufficient_quota", kind="insufficient_quota"), KeyVerdict.NO_CREDIT),
    ],
)
async def test_a_rejected_key_is_an_answer(bench: Workbench, answer: WireResponse, expected: KeyVerdict) -> None:
    """The provider's no is the finding; nothing is covered, nothing stays held."""
    bench.provider.script = [answer]
    found = await bench.validate_key(bench.validation(), deadline=bench.deadline)
    assert found.verdict == expected
    assert not any(each.is_covered for each in found.coverage)
    assert bench.keys.validations[0].verdict is expected
    assert bench.admission.holds == {}


async def test_no_credit_shows_only_in_a_paid_probe(bench: Workbench) -> None:
    """Listing models works without credit, so that a probe decides."""

    def broke(request: WireRequest) -> WireResponse:
        return healthy(request) if request.method == "GET" else failure(429, "insufficient_quota")

    bench.provider.script = [broke]
    found = await bench.validate_key(bench.validation(), deadline=bench.deadline)
    assert found.verdict == KeyVerdict.NO_CREDIT
    assert bench.admission.used_nano_usd == 0


async def test_a_failed_listing_never_rejects_a_key(bench: Workbench) -> None:
    """Hosts without a listing are judged by their answers."""

    def unlisted(request: WireRequest) -> WireResponse:
        return failure(404) if request.method == "GET" else healthy(request)

    bench.provider.script = [unlisted]
    found = await bench.validate_key(bench.validation(), deadline=bench.deadline)
    assert found.verdict == KeyVerdict.VALID
    assert found.models == ()


async def test_a_rolled_back_custody_log_keeps_a_key_from_being_listed_with(bench: Workbench) -> None:
    """Listing costs nothing and is not reserved; a key that was revoked would be sent to the provider all the same."""
    bench.admission.refusal = CustodyLogRolledBackError()
    with pytest.raises(CustodyLogRolledBackError):
        await bench.validate_key(bench.validation(), deadline=bench.deadline)
    assert (bench.provider.requests, bench.keys.validations) == ([], [])


async def test_a_metering_that_is_away_keeps_no_key_from_being_listed_with(bench: Workbench) -> None:
    """What is free needs nothing of it; the probe, which is paid for, does."""
    bench.admission.refusal = SuiteUnavailableError(service="metering")
    with pytest.raises(SuiteUnavailableError):
        await bench.validate_key(bench.validation(), deadline=bench.deadline)
    assert [request.method for request in bench.provider.requests] == ["GET"]


async def test_a_provider_that_is_away_says_nothing_of_the_key(bench: Workbench) -> None:
    """Neither listing nor probe answers: inconclusive, and the holds are in suspense or released."""
    bench.provider.script = [ProviderTimeoutError(provider="openai", rule="x")]
    call = asyncio.create_task(bench.validate_key(bench.validation(), deadline=bench.deadline))
    await bench.clock.advance(timedelta(seconds=10))
    found = await call
    assert found.verdict == KeyVerdict.INCONCLUSIVE
    assert bench.admission.holds == {}


async def test_a_model_that_cannot_keep_to_the_form_does_not_cover_guardrails(bench: Workbench) -> None:
    """The probe is the real question, so that what it shows holds for real content."""

    def chatty(request: WireRequest) -> WireResponse:
        if request.method == "GET" or request.url.endswith("/embeddings"):
            return healthy(request)
        return completion("Sure! The content looks fine to me.")

    bench.provider.script = [chatty]
    found = await bench.validate_key(bench.validation(), deadline=bench.deadline)
    coverage = {each.operation: each for each in found.coverage}
    assert not coverage[Operation.GUARDRAIL_EVALUATION].is_covered
    assert "JSON" in coverage[Operation.GUARDRAIL_EVALUATION].missing
    assert coverage[Operation.EMBEDDING_GENERATION].is_covered


async def test_a_provider_without_embeddings_covers_none(bench: Workbench) -> None:
    """What the catalogue knows to be missing is said, not probed."""
    bench.keys.leases = [bench.lease(provider="anthropic", base_url="https://api.anthropic.com")]
    text = verdict()
    bench.provider.script = [
        lambda request: (
            reply({"data": [{"id": "claude-haiku-4-5-20251001", "type": "model"}], "has_more": False})
            if request.method == "GET"
            else reply(
                {
                    "id": "msg_1",
                    "type": "message",
                    "role": "assistant",
                    "model": "claude-haiku-4-5-20251001",
                    "content": [{"type": "text", "text": text}],
                    "stop_reason": "end_turn",
                    "usage": {"input_tokens": 10, "output_tokens": 5},
                }
            )
        )
    ]
    found = await bench.validate_key(bench.validation(), deadline=bench.deadline)
    coverage = {each.operation: each for each in found.coverage}
    assert found.verdict == KeyVerdict.VALID
    assert coverage[Operation.GUARDRAIL_EVALUATION].is_covered
    assert not coverage[Operation.EMBEDDING_GENERATION].is_covered
    assert coverage[Operation.EMBEDDING_GENERATION].missing


async def test_a_cap_stops_a_probe_and_leaves_the_key_alone(bench: Workbench) -> None:
    """Probes are paid for by the owner and stop at the owner's caps."""
    bench.admission.cap_nano_usd = 10
    with pytest.raises(CapReachedError):
        await bench.validate_key(bench.validation(), deadline=bench.deadline)
    assert bench.keys.validations == []


async def test_the_platforms_own_key_is_probed_on_the_platforms_account(bench: Workbench) -> None:
    """The payer is the platform, whose own operation it is."""
    bench.keys.leases = [bench.lease(owned_by=Account(AccountKind.PLATFORM))]
    bench.admission.platform_pays = True
    await bench.validate_key(bench.validation(), deadline=bench.deadline)
    assert bench.admission.reserves[0].attribution.platform_cause is PlatformCause.OPERATION_IS_PLATFORMS


async def test_a_lease_that_ends_between_two_probes_is_replaced(bench: Workbench) -> None:
    """What was found on the first lease stands; nothing is probed twice."""

    def ending(request: WireRequest) -> WireResponse:
        if request.url.endswith("/chat/completions"):
            bench.keys.ended.add(bench.keys.leases[0].lease_id)
        return healthy(request)

    bench.provider.script = [ending]
    answer = await bench.validate_key(bench.validation(), deadline=bench.deadline)
    assert answer.verdict == KeyVerdict.VALID
    assert [request.method for request in bench.provider.requests] == ["GET", "POST", "POST"]
    assert bench.admission.holds == {}


async def test_a_repeated_validation_is_answered_from_what_was_kept(bench: Workbench) -> None:
    """The same request id buys no second probe."""
    request = bench.validation()
    first = await bench.validate_key(request, deadline=bench.deadline)
    probes = len(bench.admission.reserves)
    again = await bench.validate_key(request, deadline=bench.deadline)
    assert again.coverage == first.coverage
    assert len(bench.admission.reserves) == probes
    assert again.receipt is not None
    assert again.receipt.is_replay
