"""The client against a Router of real sockets and certificates: an answer that may be used, or Held."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from typing_extensions import override

from byok.router.v1 import operation_service_pb2 as operations_pb2
from byok.router.v1 import operation_service_pb2_grpc as operations_rpc
from byok.router.v1 import provider_service_pb2 as providers_pb2
from byok.router.v1 import provider_service_pb2_grpc as providers_rpc
from byok.router.v1.operation_result_pb2 import DISPOSITION_HOLD, DISPOSITION_PROCEED, OperationFailure
from byok_client.calling import RetryBudget
from byok_client.client import ByokClient, NoTargetError, Targets
from byok_client.errors import Held
from byok_client.requests import Attribution, Space, Subject
from servicekit.calls import CURRENT_CALL, InboundCall
from servicekit.errors import DeadlineExceededError, DomainError, UnavailableError
from servicekit.identity import AccessPolicy, current_caller
from servicekit.metrics import Metrics
from servicekit.server import GrpcServer
from servicekit.settings import ServerSettings, TlsSettings
from servicekit.wire import ErrorTable, WireError
from testkit.pki import ThrowawayCa

AGENT = Attribution(agent_id="agent-7", subject=Subject("submission", "42"))
NO_WAIT = RetryBudget(backoff_min=timedelta(0), backoff_max=timedelta(0))
POLICY = """
[roles]
platform = ["spiffe://byok.local/ns/*/sa/platform", "spiffe://byok.local/ns/*/sa/next"]

[allow]
"byok.router.v1.OperationService/EvaluateGuardrail" = ["platform"]
"byok.router.v1.OperationService/GenerateEmbeddings" = ["platform"]
"byok.router.v1.ProviderService/ValidateKey" = ["platform"]
"""


class RefusedError(DomainError):
    """Router refused in a typed way."""


TABLE = ErrorTable(
    "byok.router",
    {RefusedError: WireError(grpc.StatusCode.UNAVAILABLE, "PROVIDERS_EXHAUSTED")},
    details_of=lambda error: [
        OperationFailure(
            disposition=DISPOSITION_HOLD, retryable=isinstance(error, UnavailableError | DeadlineExceededError)
        )
    ],
)


@dataclass
class Router:
    """Answers as the test says, and keeps what it was asked."""

    answer: Callable[[Any], Awaitable[Message]]
    requests: list[Any] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)

    async def serve(self, request: Any) -> Any:
        self.requests.append(request)
        self.callers.append(current_caller().uri)
        return await self.answer(request)


class Operations(operations_rpc.OperationServiceServicer):
    def __init__(self, router: Router) -> None:
        self._router = router

    @override
    async def EvaluateGuardrail(self, request: Any, context: Any) -> Any:
        return await self._router.serve(request)

    @override
    async def GenerateEmbeddings(self, request: Any, context: Any) -> Any:
        return await self._router.serve(request)


class Providers(providers_rpc.ProviderServiceServicer):
    def __init__(self, router: Router) -> None:
        self._router = router

    @override
    async def ValidateKey(self, request: Any, context: Any) -> Any:
        return await self._router.serve(request)


async def allow(request: Any) -> Message:
    """Answer that the content is within the policy."""
    return operations_pb2.EvaluateGuardrailResponse(
        request_id=request.context.request_id,
        disposition=DISPOSITION_PROCEED,
        verdict=operations_pb2.GUARDRAIL_VERDICT_ALLOW,
    )


def failing(*errors: Exception) -> Callable[[Any], Awaitable[Message]]:
    """Return an answer that fails with `errors`, one a call, and then allows."""
    left = list(errors)

    async def answer(request: Any) -> Message:
        if left:
            raise left.pop(0)
        return await allow(request)

    return answer


@pytest.fixture
def router() -> Router:
    """Return a Router that allows everything."""
    return Router(allow)


@pytest.fixture
async def ca(tmp_path: Path) -> ThrowawayCa:
    """Return the authority of all certificates."""
    return ThrowawayCa(tmp_path)


@pytest.fixture
async def server(ca: ThrowawayCa, router: Router) -> AsyncIterator[GrpcServer]:
    """Serve the Router."""
    files = ca.issue("router")
    tls = TlsSettings(certificate_file=files.certificate, private_key_file=files.private_key, ca_file=files.ca)
    services = [
        operations_pb2.DESCRIPTOR.services_by_name["OperationService"],
        providers_pb2.DESCRIPTOR.services_by_name["ProviderService"],
    ]
    async with GrpcServer(
        ServerSettings(tls=tls, drain_grace=timedelta(seconds=2)),
        policy=AccessPolicy.load(POLICY, services=services),
        errors=TABLE,
        metrics=Metrics("router"),
        services=[
            (operations_rpc.add_OperationServiceServicer_to_server, Operations(router), services[0].full_name),
            (providers_rpc.add_ProviderServiceServicer_to_server, Providers(router), services[1].full_name),
        ],
    ) as running:
        yield running


@pytest.fixture
async def client(ca: ThrowawayCa, server: GrpcServer) -> AsyncIterator[ByokClient]:
    """Return a client of the server."""
    targets = Targets(router=f"localhost:{server.port}")
    async with ByokClient(targets, ca.issue("platform"), retries=NO_WAIT) as made:
        yield made


async def test_a_verdict_is_an_answer(client: ByokClient, router: Router) -> None:
    """What Router says may be used is given to the caller, and the request says who it is for."""
    answer = await client.evaluate_guardrail("hello", policy_text="be kind", attribution=AGENT)
    assert answer.verdict == operations_pb2.GUARDRAIL_VERDICT_ALLOW
    request = router.requests[0]
    assert (request.content, request.policy_text) == ("hello", "be kind")
    assert (request.context.agent_id, request.context.subject.id) == ("agent-7", "42")
    assert answer.request_id == request.context.request_id != ""


async def test_an_unavailable_router_is_asked_again_under_the_same_id(client: ByokClient, router: Router) -> None:
    """A second try names the same operation, so that it is paid once."""
    router.answer = failing(UnavailableError("Away."), UnavailableError("Away."))
    answer = await client.evaluate_guardrail("hello", policy_text="be kind", attribution=AGENT)
    assert {request.context.request_id for request in router.requests} == {answer.request_id}
    assert len(router.requests) == 3


async def test_a_failure_that_router_calls_final_is_not_tried_again(client: ByokClient, router: Router) -> None:
    """UNAVAILABLE with `retryable: false` is Router's last word."""
    router.answer = failing(RefusedError("All failed."))
    with pytest.raises(Held) as held:
        await client.evaluate_guardrail("hello", policy_text="be kind", attribution=AGENT)
    assert len(router.requests) == 1
    assert (held.value.reason, held.value.is_retryable) == ("PROVIDERS_EXHAUSTED", False)
    assert held.value.disposition == DISPOSITION_HOLD
    assert held.value.failure is not None


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(operations_pb2.EvaluateGuardrailResponse(), id="empty"),
        pytest.param(
            operations_pb2.EvaluateGuardrailResponse(
                disposition=DISPOSITION_HOLD, verdict=operations_pb2.GUARDRAIL_VERDICT_ALLOW
            ),
            id="hold",
        ),
        pytest.param(
            operations_pb2.EvaluateGuardrailResponse.FromString(b"\x10\x63\x18\x01"),
            id="a disposition of a newer release",
        ),
        pytest.param(
            operations_pb2.EvaluateGuardrailResponse(disposition=DISPOSITION_PROCEED), id="proceed without a verdict"
        ),
        pytest.param(
            operations_pb2.EvaluateGuardrailResponse.FromString(b"\x10\x01\x18\x63"), id="a verdict of a newer release"
        ),
    ],
)
async def test_an_answer_that_is_not_understood_is_a_hold(client: ByokClient, router: Router, answer: Message) -> None:
    """Only PROCEED with a known verdict lets content go on."""

    async def give(_request: Any) -> Message:
        return answer

    router.answer = give
    with pytest.raises(Held) as held:
        await client.evaluate_guardrail("hello", policy_text="be kind", attribution=AGENT)
    assert held.value.reason == "ANSWER_NOT_USABLE"
    assert held.value.answer == answer
    assert not held.value.is_retryable


async def test_vectors_are_as_many_as_texts(client: ByokClient, router: Router) -> None:
    """An answer that lost a vector would put every later one beside the wrong text."""
    vectors = [operations_pb2.Embedding(values=[1.0]), operations_pb2.Embedding(values=[0.5])]

    async def give(_request: Any) -> Message:
        return operations_pb2.GenerateEmbeddingsResponse(disposition=DISPOSITION_PROCEED, embeddings=vectors)

    router.answer = give
    space = Space(maker="openai", model="text-embedding-3-small", dimensions=1024)
    answer = await client.generate_embeddings(["a", "b"], attribution=AGENT, purpose="query", space=space)
    assert [list(each.values) for each in answer.embeddings] == [[1.0], [0.5]]
    assert router.requests[0].purpose == operations_pb2.EMBEDDING_PURPOSE_QUERY
    assert router.requests[0].space.dimensions == 1024
    with pytest.raises(Held):
        await client.generate_embeddings(["a", "b", "c"], attribution=AGENT)


async def test_a_key_is_validated_under_an_id_that_stays_in_the_request(client: ByokClient, router: Router) -> None:
    """The caller's own second call of the same message is a repetition."""

    async def give(request: Any) -> Message:
        return providers_pb2.ValidateKeyResponse(
            request_id=request.request_id, verdict=providers_pb2.KEY_VERDICT_REJECTED
        )

    router.answer = give
    request = providers_pb2.ValidateKeyRequest(key_id="k1")
    first = await client.validate_key(request)
    second = await client.validate_key(request)
    assert first.verdict == providers_pb2.KEY_VERDICT_REJECTED
    assert first.request_id == second.request_id == request.request_id != ""


async def test_a_time_out_is_a_hold_and_no_second_try(client: ByokClient, router: Router) -> None:
    """A call that may have been paid is not made again by itself."""

    async def hang(_request: Any) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    router.answer = hang
    with pytest.raises(Held) as held:
        await client.evaluate_guardrail(
            "hello", policy_text="be kind", attribution=AGENT, deadline=timedelta(seconds=0.5)
        )
    assert held.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert held.value.is_retryable
    assert len(router.requests) == 1


async def test_no_router_at_all_is_a_hold(ca: ThrowawayCa, make_free_port: Callable[[], int]) -> None:
    """A broken channel says nothing, and nothing means hold."""
    targets = Targets(router=f"localhost:{make_free_port()}")
    async with ByokClient(targets, ca.issue("platform"), retries=NO_WAIT) as client:
        with pytest.raises(Held) as held:
            await client.evaluate_guardrail(
                "hello", policy_text="be kind", attribution=AGENT, deadline=timedelta(seconds=3)
            )
    assert (held.value.failure, held.value.reason) == (None, "")
    assert held.value.disposition == DISPOSITION_HOLD


async def test_a_client_closed_under_way_is_a_hold_and_no_cancellation(client: ByokClient, router: Router) -> None:
    """Closing the connection must not look like the caller's own cancellation, which would skip their hold."""
    entered = asyncio.Event()

    async def hang(_request: Any) -> Message:
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    router.answer = hang
    call = asyncio.create_task(client.evaluate_guardrail("hello", policy_text="be kind", attribution=AGENT))
    await entered.wait()
    await client.aclose()
    with pytest.raises(Held):
        await call


async def test_the_callers_own_cancellation_stays_one(client: ByokClient, router: Router) -> None:
    """A caller that is cancelled is cancelled, and Router's work with it."""
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(_request: Any) -> Message:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    router.answer = hang
    call = asyncio.create_task(client.evaluate_guardrail("hello", policy_text="be kind", attribution=AGENT))
    await entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await cancelled.wait()


async def test_the_time_of_the_call_being_served_bounds_ours(client: ByokClient, router: Router) -> None:
    """Inside a served call with no time left, no operation is begun."""
    CURRENT_CALL.set(InboundCall("/platform.Service/Call", "", asyncio.get_running_loop().time()))
    with pytest.raises(Held) as held:
        await client.evaluate_guardrail("hello", policy_text="be kind", attribution=AGENT)
    assert held.value.reason == "DEADLINE_EXCEEDED"
    assert router.requests == []


async def test_a_caller_that_is_not_listed_holds(ca: ThrowawayCa, server: GrpcServer) -> None:
    """A refusal of the caller is a hold like every other."""
    async with ByokClient(Targets(router=f"localhost:{server.port}"), ca.issue("stranger")) as client:
        with pytest.raises(Held) as held:
            await client.evaluate_guardrail("hello", policy_text="be kind", attribution=AGENT)
    assert held.value.reason == "CALLER_NOT_ALLOWED"
    assert not held.value.is_retryable


async def test_without_a_target_nothing_is_guessed(client: ByokClient) -> None:
    """A service that was not named is not called."""
    for name in ("keys", "accounts", "audit", "custody", "limits", "usage"):
        with pytest.raises(NoTargetError):
            getattr(client, name)
