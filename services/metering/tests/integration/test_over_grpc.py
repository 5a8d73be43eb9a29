"""Metering as its callers meet it: real processes, mutual TLS, real stores."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest

from byok.metering.v1 import (
    account_service_pb2,
    admission_service_pb2,
    limit_service_pb2,
    reservation_pb2,
    usage_service_pb2,
)
from byok.type.v1 import account_pb2
from metering.api.page_tokens import page_token
from metering.domain.accounts import account_key
from metering.domain.enums import AccountKind
from servicekit.wire import error_from_rpc, remote_error
from services.metering.tests.served import (
    OPERATOR,
    Served,
    account_of,
    new_id,
    register,
    reserve,
    reserve_item,
    serve,
    set_limit,
    settle,
    settle_item,
)
from testkit.pki import ThrowawayCa
from testkit.postgres import create_database, drop_database, dsn_of_database
from testkit.redis import EmbeddedRedis
from testkit.waiting import eventually

# One replica for all tests of the file: starting a process is what takes time. Each test has an owner of its own.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    tmp_path_factory: pytest.TempPathFactory, throwaway_ca: ThrowawayCa, postgres_server: str, redis_server: str
) -> AsyncIterator[Served]:
    """Return one replica."""
    name = f"metering_served_{uuid.uuid4().hex[:12]}"
    await create_database(postgres_server, name)
    dsn = dsn_of_database(postgres_server, name)
    async with serve(tmp_path_factory.mktemp("served"), throwaway_ca, dsn=dsn, redis_url=redis_server) as running:
        yield running
    await drop_database(postgres_server, name)


@pytest_asyncio.fixture(loop_scope="module")
async def two_served(
    tmp_path: Path, throwaway_ca: ThrowawayCa, postgres_server: str, metering_template: str
) -> AsyncIterator[Served]:
    """Return two replicas on the same stores, a Redis of their own among them."""
    name = f"metering_two_{uuid.uuid4().hex[:12]}"
    await create_database(postgres_server, name, template=metering_template)
    dsn = dsn_of_database(postgres_server, name)
    more = {"BYOK_METERING_LICENCE__LIFE": "3", "BYOK_METERING_LICENCE__RENEW": "0.5"}
    async with (
        EmbeddedRedis(tmp_path / "redis") as store,
        serve(tmp_path, throwaway_ca, dsn=dsn, redis_url=store.url, replicas=2, more=more) as running,
    ):
        yield running
    await drop_database(postgres_server, name)


async def test_the_main_path_over_the_wire(served: Served) -> None:
    """Register, limit, reserve, settle, replay, read: every service and its typed answers."""
    edge, router = await served.client("operator"), await served.client("router")
    agent = await register(edge, "main", "main-agent")
    assert (agent.account.owner_id, agent.binding_index, served.keyvault.bound) == ("main", 1, ["main-agent"])
    account = (
        await edge.accounts.GetAccount(
            account_service_pb2.GetAccountRequest(account=account_of("main"), acting_for=OPERATOR)
        )
    ).account
    assert (account.plan, account.agents, account.time_zone) == ("free", 1, "UTC")

    holder = new_id()
    item = reserve_item("main", "main-agent", holder)
    (first,) = await reserve(router, [item])
    assert first.grant.granted_output_tokens == 1_000
    assert first.grant.payer_rule == "owner_key"
    (done,) = await settle(router, [settle_item(item, first.grant)])
    assert done.settled.position.generation == 1
    (again,) = await reserve(router, [item])
    assert again.final_outcome.sealed_answer == b"sealed"
    assert again.final_outcome.usage.cost_nano_usd == 1_000_000
    found = await router.admission.Lookup(
        admission_service_pb2.LookupRequest(
            request_id=item.call.request_id, agent_id="main-agent", body_hash=item.body_hash
        )
    )
    assert found.state == admission_service_pb2.OPERATION_STATE_FINAL

    async def durable() -> bool:
        answer = await router.admission.ListWatermarks(admission_service_pb2.ListWatermarksRequest())
        position = done.settled.position
        return any(
            each.partition == position.partition and each.sequence >= position.sequence for each in answer.watermarks
        )

    await eventually(durable, bool)
    summary = await edge.usage.GetUsageSummary(
        usage_service_pb2.GetUsageSummaryRequest(
            account=account_of("main"), acting_for=OPERATOR, group_by=[usage_service_pb2.USAGE_DIMENSION_MODEL]
        )
    )
    assert summary.settled_cost_nano_usd == 1_000_000
    assert [(row.provider, row.model, row.input_tokens) for row in summary.rows] == [
        ("anthropic", "claude-haiku-4-5", 480)
    ]
    entries = await edge.usage.ListLedgerEntries(
        usage_service_pb2.ListLedgerEntriesRequest(account=account_of("main"), acting_for=OPERATOR)
    )
    assert [(entry.reservation_id, entry.usage.models[0].model) for entry in entries.entries] == [
        (first.grant.reservation_id, "claude-haiku-4-5")
    ]


async def test_a_cap_says_which_limit_what_remains_and_when_it_starts_afresh(served: Served) -> None:
    """CAP_REACHED carries its facts and a QuotaFailure, and no RetryInfo."""
    edge, router = await served.client("operator"), await served.client("router")
    await register(edge, "cap", "cap-agent")
    answer = await set_limit(edge, "cap", limit_service_pb2.LIMIT_UNIT_CALLS, 1, agent_id="cap-agent")
    assert not answer.is_pending
    holder = new_id()
    results = await reserve(
        router, [reserve_item("cap", "cap-agent", holder), reserve_item("cap", "cap-agent", holder)]
    )
    refused = remote_error(results[1].error)
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CAP_REACHED")
    assert refused.retry_after is None
    assert refused.metadata["limitId"] == answer.limit.limit_id
    assert (refused.metadata["remaining"], refused.metadata["limit"], refused.metadata["scope"]) == (
        "0",
        "1",
        "agent:cap-agent",
    )
    assert refused.metadata["resetTime"].endswith("T00:00:00Z")
    listed = await edge.limits.ListLimits(
        limit_service_pb2.ListLimitsRequest(account=account_of("cap"), acting_for=OPERATOR)
    )
    by_id = {each.limit.limit_id: each for each in listed.limits}
    assert by_id[answer.limit.limit_id].held_amount == 1
    default = next(each for each in listed.limits if each.limit.is_default)
    assert default.limit.amount == 1_000_000_000


async def test_who_may_not_call_is_refused_and_owners_see_only_their_own(served: Served) -> None:
    """The access list is by role; another owner's account is not found."""
    edge, router = await served.client("edge"), await served.client("router")
    operator = await served.client("operator")
    await register(operator, "who", "who-agent")
    for attempt in (
        router.limits.ListLimits(limit_service_pb2.ListLimitsRequest(account=account_of("who"), acting_for=OPERATOR)),
        edge.admission.ListWatermarks(admission_service_pb2.ListWatermarksRequest()),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await attempt
        assert error_from_rpc(refused.value).reason == "CALLER_NOT_ALLOWED"
    stranger = account_pb2.Principal(owner_id="who-2")
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await edge.accounts.GetAgent(account_service_pb2.GetAgentRequest(agent_id="who-agent", acting_for=stranger))
    assert error_from_rpc(missing.value).reason == "AGENT_NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as unlicensed:
        await edge.accounts.GetAgent(account_service_pb2.GetAgentRequest(agent_id="who-agent", acting_for=OPERATOR))
    assert error_from_rpc(unlicensed.value).reason == "INVALID_ARGUMENT"


async def test_each_bad_item_is_answered_by_itself_naming_its_field(served: Served) -> None:
    """One item that cannot be read does not fail the others."""
    operator, router = await served.client("operator"), await served.client("router")
    await register(operator, "bad", "bad-agent")
    holder = new_id()
    good, stranger, nameless = (reserve_item("bad", "bad-agent", holder) for _ in range(3))
    stranger.attribution.agent_id = "agent-unknown"
    nameless.call.request_id = "not-an-id"
    platform = reserve_item("bad", "bad-agent", holder)
    platform.attribution.payer = account_pb2.PAYER_PLATFORM
    platform.attribution.platform_cause = reservation_pb2.PLATFORM_CAUSE_NO_KEY
    results = await reserve(router, [good, stranger, nameless, platform])
    assert results[0].WhichOneof("result") == "grant"
    reasons = [remote_error(result.error).reason for result in results[1:]]
    assert reasons == ["AGENT_NOT_FOUND", "INVALID_ARGUMENT", "PLATFORM_NOT_PAYING"]


async def test_the_same_request_id_with_another_body_is_refused(served: Served) -> None:
    """A mutation is answered again for the same body, and refused for another."""
    operator = await served.client("operator")
    request = account_service_pb2.RegisterAgentRequest(
        request_id=new_id(), acting_for=OPERATOR, actor="test", agent_id="same-agent", owner_id="same"
    )
    first = await operator.accounts.RegisterAgent(request)
    assert await operator.accounts.RegisterAgent(request) == first
    request.agent_id = "same-agent-2"
    with pytest.raises(grpc.aio.AioRpcError) as reused:
        await operator.accounts.RegisterAgent(request)
    assert error_from_rpc(reused.value).reason == "REQUEST_ID_REUSED"
    with pytest.raises(grpc.aio.AioRpcError) as taken:
        await register(operator, "same-2", "same-agent")
    assert error_from_rpc(taken.value).reason == "AGENT_ALREADY_REGISTERED"


async def test_the_default_cap_can_be_raised_but_not_made_to_stop_nothing(served: Served) -> None:
    """A soft cap of any amount would be no cap."""
    operator = await served.client("operator")
    await register(operator, "soft", "soft-agent")
    whole = {"whole_account": True}
    raised = await set_limit(operator, "soft", limit_service_pb2.LIMIT_UNIT_COST, 2_000_000_000, **whole)
    assert raised.limit.is_default
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await set_limit(
            operator,
            "soft",
            limit_service_pb2.LIMIT_UNIT_COST,
            2_000_000_000,
            enforcement=limit_service_pb2.LIMIT_ENFORCEMENT_SOFT,
            **whole,
        )
    assert _fields(refused.value) == ["limit.enforcement"]


async def test_of_two_bodies_at_once_under_one_request_id_one_is_refused(served: Served) -> None:
    """Whoever comes second loses, also when the first has not been answered yet."""
    operator = await served.client("operator")
    await register(operator, "race", "race-agent")
    request_id = new_id()

    async def ask(amount: int) -> str:
        limit = limit_service_pb2.Limit(
            account=account_of("race"),
            unit=limit_service_pb2.LIMIT_UNIT_CALLS,
            window=limit_service_pb2.LIMIT_WINDOW_DAY,
            amount=amount,
        )
        try:
            answer = await operator.limits.SetLimit(
                limit_service_pb2.SetLimitRequest(request_id=request_id, acting_for=OPERATOR, actor="test", limit=limit)
            )
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error).reason
        return str(answer.limit.amount)

    answers = set(await asyncio.gather(*(ask(amount) for amount in (10, 20) * 6)))
    assert answers in ({"10", "REQUEST_ID_REUSED"}, {"20", "REQUEST_ID_REUSED"})


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(-1, 0), (-(10**15), 0), (253_402_300_799, 0), (10**17, 0), (1_700_000_000, -5)]
)
@pytest.mark.parametrize("field", ["start_time", "end_time"])
async def test_a_time_that_no_ledger_has_is_refused(served: Served, field: str, seconds: int, nanos: int) -> None:
    """A time out of every range is the caller's fault, and the field is named."""
    operator = await served.client("operator")
    at: dict[str, Any] = {field: Timestamp(seconds=seconds, nanos=nanos)}
    asks = [
        operator.usage.GetUsageSummary(
            usage_service_pb2.GetUsageSummaryRequest(account=account_of("t"), acting_for=OPERATOR, **at)
        ),
        operator.usage.ListLedgerEntries(
            usage_service_pb2.ListLedgerEntriesRequest(account=account_of("t"), acting_for=OPERATOR, **at)
        ),
    ]
    for ask in asks:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask
        assert _fields(refused.value) == [field]


async def test_ids_that_no_text_column_takes_are_refused(served: Served) -> None:
    """A zero byte in a filter is a wrong field, not a database that is away."""
    operator = await served.client("operator")
    owner: dict[str, Any] = {"account": account_of("t"), "acting_for": OPERATOR}
    asks = [
        operator.usage.GetUsageSummary(usage_service_pb2.GetUsageSummaryRequest(agent_id="a\x00", **owner)),
        operator.usage.ListLedgerEntries(usage_service_pb2.ListLedgerEntriesRequest(agent_id="a\x00", **owner)),
        operator.usage.ListLedgerEntries(usage_service_pb2.ListLedgerEntriesRequest(lease_id="a\x00", **owner)),
        operator.limits.ListLimits(limit_service_pb2.ListLimitsRequest(agent_id="a\x00", **owner)),
        operator.limits.RemoveLimit(
            limit_service_pb2.RemoveLimitRequest(request_id=new_id(), limit_id="a\x00", **owner)
        ),
    ]
    found = []
    for ask in asks:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask
        found += _fields(refused.value)
    assert found == ["agent_id", "agent_id", "lease_id", "agent_id", "limit_id"]
    router = await served.client("router")
    lookup = admission_service_pb2.LookupRequest(request_id=new_id(), agent_id="a\x00", body_hash=bytes(32))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await router.admission.Lookup(lookup)
    assert _fields(refused.value) == ["agent_id"]


async def test_a_forged_place_in_the_ledger_is_a_bad_token(served: Served) -> None:
    """A token's digest binds the filter, which a caller may know; the place in it is theirs to write."""
    operator = await served.client("operator")
    await register(operator, "forged", "forged-agent")
    request = usage_service_pb2.ListLedgerEntriesRequest(account=account_of("forged"), acting_for=OPERATOR)
    bound_to = ("ListLedgerEntries", account_key(AccountKind.OWNER, "forged"), "", "", "", "None/None")
    request.page_token = page_token(f"9.{new_id()}", *bound_to)
    assert not (await operator.usage.ListLedgerEntries(request)).entries
    request.lease_id = "another-filter"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await operator.usage.ListLedgerEntries(request)
    assert _fields(refused.value) == ["page_token"]
    request.lease_id = ""
    request.page_token = page_token("soon.after", *bound_to)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await operator.usage.ListLedgerEntries(request)
    assert _fields(refused.value) == ["page_token"]


def _fields(error: grpc.aio.AioRpcError) -> list[str]:
    refused = error_from_rpc(error)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    bad = refused.detail(BadRequest)
    assert bad is not None
    return [each.field for each in bad.field_violations]


async def test_a_cap_of_twenty_holds_over_two_replicas_also_with_one_killed_half_way(two_served: Served) -> None:
    """50 callers through two replicas get exactly 20, and killing one admits nobody twice."""
    operator = await two_served.client("operator")
    await register(operator, "twenty", "twenty-agent")
    await set_limit(operator, "twenty", limit_service_pb2.LIMIT_UNIT_CALLS, 20, agent_id="twenty-agent")
    routers = [await two_served.client("router", replica=number) for number in range(2)]
    holder = new_id()
    items = [reserve_item("twenty", "twenty-agent", holder) for _ in range(50)]
    granted: set[str] = set()
    lost: list[int] = []

    async def call(number: int, router_number: int) -> None:
        try:
            (result,) = await reserve(routers[router_number], [items[number]])
        except grpc.aio.AioRpcError:
            lost.append(number)
            return
        if result.WhichOneof("result") == "grant":
            granted.add(result.grant.reservation_id)

    first_half = [asyncio.create_task(call(number, number % 2)) for number in range(25)]
    await asyncio.sleep(0.01)
    two_served.replicas[1].kill9()
    await asyncio.gather(*first_half)
    await asyncio.gather(*(call(number, 0) for number in range(25, 50)))
    # Whoever lost its answer asks again, with its request id, and may have been granted before.
    await asyncio.gather(*(call(number, 0) for number in list(lost)))
    assert len(granted) == 20
