"""The client of KeyVault over real gRPC: sealed batches, refusals, outcomes."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import grpc
import pytest
from google.rpc.status_pb2 import Status

from byok.keyvault.v1 import lease_pb2
from byok.keyvault.v1 import lease_service_pb2 as pb
from byok.keyvault.v1.provider_key_pb2 import KEY_STATE_ACTIVE, KEY_STATE_INVALID, KEY_STATE_NO_CREDIT, ProviderKey
from byok.type.v1.account_pb2 import Account as AccountMessage
from catalogue.models import Operation
from router.domain.leases import Account, AccountKind, Lease, LeaseQuery, NoKey, Outcome, OutcomeKind, PlatformCause
from router.domain.operations import Principal
from router.domain.refusals import (
    AgentNotFoundError,
    HaltedError,
    KeyCorruptError,
    ProviderKeyRevokedError,
    RouterError,
    RouterOverloadedError,
    SuiteUnavailableError,
)
from router.ports import KeyVerdict, ValidationReport
from servicekit.clock import SystemClock
from servicekit.errors import DomainError, InvalidArgumentError
from services.router.tests.integration.fake_keyvault import QUERY, opened, status, until
from services.router.tests.kit import CANARY


async def test_a_sealed_lease_opens_here_and_says_everything() -> None:
    """Secret and base URL come from the sealed part, the rest from the open one."""
    async with opened() as bench:
        lease = await bench.client.acquire(QUERY)
        assert isinstance(lease, Lease)
        assert lease.secret.reveal() == CANARY.encode()
        assert lease.base_url == "https://api.openai.com/v1"
        assert lease.mapping[Operation.GUARDRAIL_EVALUATION].model == "gpt-4o"
        assert (lease.account, lease.owner_id, lease.binding_index) == (
            Account(AccountKind.OWNER, "owner-1"),
            "owner-1",
            3,
        )
        assert CANARY not in repr(lease)


async def test_leases_asked_for_at_once_share_a_batch_and_keep_their_places() -> None:
    """Sixty leases take few calls, and each caller gets its own."""
    async with opened() as bench:
        queries = [replace(QUERY, agent_id=f"agent-{number}") for number in range(60)]
        leases = await asyncio.gather(*(bench.client.acquire(query) for query in queries))
        assert [lease.agent_id for lease in leases if isinstance(lease, Lease)] == [q.agent_id for q in queries]
        assert len(bench.vault.requests) < 10


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (QUERY, "agent"),
        (LeaseQuery(operation=Operation.EMBEDDING_GENERATION), "platform"),
        (LeaseQuery(operation=Operation.KEY_VALIDATION, key_id="k", acting_for=Principal(owner_id="o")), "validation"),
    ],
)
async def test_each_purpose_is_told(query: LeaseQuery, field: str) -> None:
    """An agent's operation, the platform's, and the validation of a key are different questions."""
    async with opened() as bench:
        await bench.client.acquire(query)
        assert bench.vault.requests[0].items[0].WhichOneof("purpose") == field


async def test_no_key_says_why() -> None:
    """The cause, the account and the owner come through."""
    async with opened() as bench:
        bench.vault.no_key = lease_pb2.NoUsableKey(
            cause=lease_pb2.NO_KEY_CAUSE_NO_KEY, account=AccountMessage(owner_id="owner-1"), owner_id="owner-1"
        )
        found = await bench.client.acquire(QUERY)
        assert isinstance(found, NoKey)
        assert (found.cause, found.account) == (PlatformCause.NO_KEY, Account(AccountKind.OWNER, "owner-1"))


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (status("AGENT_NOT_FOUND"), AgentNotFoundError),
        (status("PROVIDER_KEY_REVOKED", grpc.StatusCode.FAILED_PRECONDITION), ProviderKeyRevokedError),
        (status("HALTED", grpc.StatusCode.FAILED_PRECONDITION), HaltedError),
        (status("ENVELOPE_CORRUPT", grpc.StatusCode.DATA_LOSS), KeyCorruptError),
        (status("AUTHORITY_CORRUPT", grpc.StatusCode.DATA_LOSS), KeyCorruptError),
        (status("OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED), RouterOverloadedError),
        (status("KEK_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE), SuiteUnavailableError),
    ],
)
async def test_a_refusal_is_typed(refusal: Status, expected: type[RouterError]) -> None:
    """What KeyVault refuses reads in our own words."""
    async with opened() as bench:
        bench.vault.refusal = refusal
        with pytest.raises(expected):
            await bench.client.acquire(QUERY)


async def test_one_bad_item_costs_the_others_nothing() -> None:
    """A batch that is refused as a whole is asked for again, each item alone."""
    async with opened() as bench:
        bench.vault.refused_agent = "agent-3"
        queries = [replace(QUERY, agent_id=f"agent-{number}") for number in range(6)]
        found = await asyncio.gather(*(bench.client.acquire(query) for query in queries), return_exceptions=True)
        assert [isinstance(each, Lease) for each in found] == [True, True, True, False, True, True]
        assert isinstance(found[3], InvalidArgumentError)


@pytest.mark.parametrize("attack", ["other_info", "other_provider"])
async def test_a_batch_that_does_not_belong_here_is_refused(attack: str) -> None:
    """Sealed for another purpose, or about another key than the open part says: nothing is used."""
    async with opened() as bench:
        if attack == "other_info":
            bench.vault.info = b"something.else"
        else:
            bench.vault.sealed_provider = "anthropic"
        with pytest.raises(KeyCorruptError):
            await bench.client.acquire(QUERY)


async def test_outcomes_travel_in_batches_and_successes_once_a_second() -> None:
    """Failures are all told; that a key works is told once."""
    async with opened() as bench:
        lease = await bench.client.acquire(QUERY)
        assert isinstance(lease, Lease)
        for kind in (OutcomeKind.SUCCEEDED, OutcomeKind.SUCCEEDED, OutcomeKind.RATE_LIMITED, OutcomeKind.RATE_LIMITED):
            bench.client.report(
                Outcome(
                    lease_id=lease.lease_id,
                    key_id=lease.key_id,
                    key_version=lease.key_version,
                    kind=kind,
                    operation=Operation.GUARDRAIL_EVALUATION,
                    model="gpt-4o",
                    request_id="r",
                    end_time=SystemClock().monotonic(),
                    retry_after=timedelta(days=3),
                )
            )
        await until(lambda: len(bench.vault.outcomes) == 3)
        assert [outcome.kind for outcome in bench.vault.outcomes] == [
            pb.OUTCOME_KIND_SUCCEEDED,
            pb.OUTCOME_KIND_RATE_LIMITED,
            pb.OUTCOME_KIND_RATE_LIMITED,
        ]
        assert bench.vault.outcomes[1].retry_after.ToTimedelta() == timedelta(hours=24)


async def test_a_validation_is_reported_and_the_key_comes_back() -> None:
    """The key after the change is handed on as KeyVault sent it."""
    async with opened() as bench:
        lease = await bench.client.acquire(QUERY)
        assert isinstance(lease, Lease)
        key = await bench.client.report_validation(
            ValidationReport(
                request_id="r",
                lease=lease,
                verdict=KeyVerdict.VALID,
                explanation="works",
                models=("gpt-4o",),
                operations=(Operation.GUARDRAIL_EVALUATION,),
            )
        )
        assert ProviderKey.FromString(key).key_id == "key-1"
        assert bench.vault.validations[0].verdict == pb.VALIDATION_VERDICT_VALID


async def test_due_keys_come_with_their_leases() -> None:
    """Those that work, and an organization's, are to be tested for free; what does not open is left to its claim."""
    async with opened() as bench:
        bench.vault.due_states = [KEY_STATE_ACTIVE, KEY_STATE_INVALID, KEY_STATE_NO_CREDIT]
        due, retry_after = await bench.client.claim_due(2)
        assert [(each.lease.lease_id, each.is_free) for each in due] == [("lease-0", True), ("lease-1", False)]
        assert {each.lease.secret.reveal() for each in due} == {CANARY.encode()}
        assert retry_after == timedelta(seconds=7)
        bench.vault.sealed_provider = "another"
        assert (await bench.client.claim_due(2))[0] == []


async def test_a_keyvault_that_hands_out_no_keys_is_an_error() -> None:
    """Told by its type, so that it is asked again later."""
    async with opened() as bench:
        bench.vault.refused_agent = ""
        bench.vault.due_states = [KEY_STATE_ACTIVE]
        with pytest.raises(DomainError):
            await bench.client.claim_due(1)
