"""A rolled-back custody log as callers and operators meet it: two processes, mutual TLS, the real AuditService."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from byok.metering.v1 import account_service_pb2
from servicekit.wire import error_from_rpc
from services.metering.tests.served import (
    Client,
    Served,
    new_id,
    register,
    reserve,
    reserve_item,
    serve,
    settle,
    settle_item,
)
from testkit.pki import ThrowawayCa
from testkit.postgres import create_database, drop_database, dsn_of_database
from testkit.redis import EmbeddedRedis
from testkit.waiting import eventually

# What the README promises of how soon every replica stops.
_STOPS_WITHIN_SECONDS = 2.0


@pytest.fixture
async def served(
    tmp_path: Path, throwaway_ca: ThrowawayCa, postgres_server: str, metering_template: str
) -> AsyncIterator[Served]:
    """Return two replicas beside a KeyVault whose log a test may roll back."""
    name = f"metering_custody_{uuid.uuid4().hex[:12]}"
    await create_database(postgres_server, name, template=metering_template)
    dsn = dsn_of_database(postgres_server, name)
    async with (
        EmbeddedRedis(tmp_path / "redis") as store,
        serve(tmp_path, throwaway_ca, dsn=dsn, redis_url=store.url, replicas=2) as running,
    ):
        yield running
    await drop_database(postgres_server, name)


async def witness(operator: Client) -> account_service_pb2.CustodyWitness:
    """Return what an operator reads."""
    answer = await operator.accounts.GetCustodyWitness(account_service_pb2.GetCustodyWitnessRequest())
    found: account_service_pb2.CustodyWitness = answer.witness
    return found


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Return how a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    error = error_from_rpc(refused.value)
    return error.code, error.reason, dict(error.metadata)


async def outcome(router: Client) -> str:
    """Return what becomes of a reserve: `GRANTED`, or the reason of its refusal."""
    try:
        (result,) = await reserve(router, [reserve_item("owner", "agent", new_id())])
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error).reason or error.code().name
    assert result.WhichOneof("result") == "grant"
    return "GRANTED"


async def outcomes_until(router: Client, last: str) -> set[str]:
    """Return what becomes of reserves until one ends in a certain way."""
    seen: set[str] = set()

    async def once() -> str:
        latest = await outcome(router)
        seen.add(latest)
        return latest

    await eventually(once, last.__eq__)
    return seen


async def test_a_rolled_back_log_stops_both_replicas_and_a_restarted_one_until_an_operator_accepts(
    served: Served,
) -> None:
    """Within two seconds, with a typed refusal; settlements go on; the acceptance is given again for its request id."""
    routers = [await served.client("router", replica=number) for number in range(2)]
    operator = await served.client("operator")
    served.log.grow(20)
    await eventually(lambda: witness(operator), lambda seen: seen.witnessed_size == 21)
    await register(operator, "owner", "agent")
    item = reserve_item("owner", "agent", new_id())
    (granted,) = await reserve(routers[0], [item])

    served.log.restore(12)
    started = time.monotonic()  # noqa: TID251 (how long real processes take)
    for router in routers:
        await outcomes_until(router, "CUSTODY_LOG_ROLLED_BACK")
    took = time.monotonic() - started  # noqa: TID251 (as above)
    assert took < _STOPS_WITHIN_SECONDS
    code, reason, metadata = await refusal(reserve(routers[1], [reserve_item("owner", "agent", new_id())]))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CUSTODY_LOG_ROLLED_BACK")
    assert metadata == {"witnessedSize": "21"}
    (done,) = await settle(routers[1], [settle_item(item, granted.grant)])
    assert done.WhichOneof("result") == "settled"

    served.replicas[1].kill9()
    served.replicas[1].start()
    assert "GRANTED" not in await outcomes_until(routers[1], "CUSTODY_LOG_ROLLED_BACK")

    found = await witness(operator)
    assert found.state == account_service_pb2.CUSTODY_STATE_ROLLED_BACK
    assert (found.witnessed_size, "\n12\n" in found.contradicting_checkpoint) == (21, True)
    accept = account_service_pb2.AcceptCustodyRestoreRequest(
        request_id=new_id(), actor="alex", witnessed_size=21, reason="a disk died; restored on purpose"
    )
    answers = await asyncio.gather(*(operator.accounts.AcceptCustodyRestore(accept) for _ in range(3)))
    assert {answer.witness.witnessed_size for answer in answers} == {12}
    for router in routers:
        await outcomes_until(router, "GRANTED")
    assert await operator.accounts.AcceptCustodyRestore(accept) == answers[0]
    accept.witnessed_size = 12
    assert (await refusal(operator.accounts.AcceptCustodyRestore(accept)))[1] == "REQUEST_ID_REUSED"


async def test_a_vault_that_is_away_stops_nothing_and_one_whose_log_is_corrupt_does(served: Served) -> None:
    """Not being able to look is no finding; KeyVault's own word that its log is spoiled is one."""
    router, operator = await served.client("router"), await served.client("operator")
    await register(operator, "owner", "agent")
    await eventually(lambda: witness(operator), lambda seen: seen.witnessed_size == 1)
    served.log.is_down = True
    asked = served.log.asked
    await eventually(_asked_often(served), lambda count: count > asked + 5)
    assert await outcome(router) == "GRANTED"
    served.log.corrupt_at = 25
    served.log.is_down = False
    await outcomes_until(router, "CUSTODY_LOG_ROLLED_BACK")
    assert "corrupt at index 25" in (await witness(operator)).description


def _asked_often(served: Served) -> Callable[[], Awaitable[int]]:
    async def count() -> int:
        return served.log.asked

    return count


async def test_only_an_operator_reads_the_witness_and_accepts_and_says_why(served: Served) -> None:
    """Nobody else may end the stop, and an acceptance without a name or a reason is none."""
    for role in ("edge", "platform", "router"):
        stranger = await served.client(role)
        for call in (
            stranger.accounts.GetCustodyWitness(account_service_pb2.GetCustodyWitnessRequest()),
            stranger.accounts.AcceptCustodyRestore(account_service_pb2.AcceptCustodyRestoreRequest()),
        ):
            assert (await refusal(call))[1] == "CALLER_NOT_ALLOWED"
    operator = await served.client("operator")
    whole: dict[str, Any] = {"request_id": new_id(), "actor": "alex", "witnessed_size": 1, "reason": "on purpose"}
    for wrong in ({"actor": ""}, {"reason": ""}, {"reason": "x" * 201}, {"reason": "a\x00"}, {"witnessed_size": -1}):
        request = account_service_pb2.AcceptCustodyRestoreRequest(**{**whole, **wrong})
        assert (await refusal(operator.accounts.AcceptCustodyRestore(request)))[1] == "INVALID_ARGUMENT"
    request = account_service_pb2.AcceptCustodyRestoreRequest(**{**whole, "request_id": "not-an-id"})
    assert (await refusal(operator.accounts.AcceptCustodyRestore(request)))[1] == "INVALID_ARGUMENT"
