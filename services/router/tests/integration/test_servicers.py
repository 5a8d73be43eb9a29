"""The servicers over mutual TLS, on memory adapters: who may call, what is refused, what an answer carries."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest

from byok.router.v1 import operation_result_pb2, operation_service_pb2, provider_service_pb2
from byok.router.v1.operation_service_pb2_grpc import (
    OperationServiceStub,
    add_OperationServiceServicer_to_server,
)
from byok.router.v1.provider_service_pb2_grpc import ProviderServiceStub, add_ProviderServiceServicer_to_server
from byok.type.v1.account_pb2 import PAYER_OWNER, Principal
from router.api.errors import TABLE
from router.api.servicers import OperationServicer, ProviderServicer
from router.app import ACCESS_FILE
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.identity import AccessPolicy
from servicekit.ids import new_uuid7
from servicekit.metrics import Metrics
from servicekit.server import GrpcServer, ServedService
from servicekit.settings import ServerSettings, TlsSettings
from servicekit.wire import RemoteError, error_from_rpc
from services.router.tests.kit import Workbench, completion, failure, vectors, verdict
from testkit.pki import ThrowawayCa

CLOCK = SystemClock()


class Served:
    """A served Router and what its callers need."""

    def __init__(self, bench: Workbench, ca: ThrowawayCa, port: int) -> None:
        self.bench = bench
        self.ca = ca
        self.port = port

    @asynccontextmanager
    async def as_(self, role: str) -> AsyncIterator[OperationServiceStub]:
        """Call as a role."""
        async with open_channel(f"localhost:{self.port}", self.ca.issue(role)) as channel:
            yield OperationServiceStub(channel)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """Serve a Router whose owner has one key that works."""
    bench = Workbench(clock=CLOCK)  # type: ignore[arg-type]  # the server's deadlines run on real time
    bench.keys.leases = [bench.lease()]
    bench.provider.script = [completion(verdict("review", score=0.5))]
    ca = ThrowawayCa(tmp_path)
    files = ca.issue("router")
    settings = ServerSettings(
        tls=TlsSettings(certificate_file=files.certificate, private_key_file=files.private_key, ca_file=files.ca)
    )
    operations, providers = (
        operation_service_pb2.DESCRIPTOR.services_by_name["OperationService"],
        provider_service_pb2.DESCRIPTOR.services_by_name["ProviderService"],
    )
    servicer = OperationServicer(
        evaluate_guardrail=bench.evaluate_guardrail, generate_embeddings=bench.generate_embeddings, clock=CLOCK
    )
    server = GrpcServer(
        settings,
        policy=AccessPolicy.load(ACCESS_FILE, services=[operations, providers]),
        errors=TABLE,
        metrics=Metrics("router"),
        services=[
            ServedService(add_OperationServiceServicer_to_server, servicer, operations.full_name),
            ServedService(
                add_ProviderServiceServicer_to_server,
                ProviderServicer(validate_key=bench.validate_key, clock=CLOCK),
                providers.full_name,
            ),
        ],
    )
    async with server:
        yield Served(bench, ca, server.port)


def request(**changes: Any) -> operation_service_pb2.EvaluateGuardrailRequest:
    """Return a guardrail request."""
    context = operation_service_pb2.OperationContext(request_id=new_uuid7(CLOCK.now()), agent_id="agent-1")
    values: dict[str, Any] = {"context": context, "content": "Hello.", "policy_text": "No greetings."}
    return operation_service_pb2.EvaluateGuardrailRequest(**values | changes)


async def refused(call: Any) -> RemoteError:
    """Return what a call is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error_from_rpc(error.value)


async def test_an_answer_carries_verdict_disposition_and_receipt(served: Served) -> None:
    """PROCEED says that the verdict is usable, and the receipt who paid what."""
    async with served.as_("platform") as stub:
        asked = request()
        answer = await stub.EvaluateGuardrail(asked)
        again = await stub.EvaluateGuardrail(asked)
    assert answer.request_id == asked.context.request_id
    assert answer.disposition == operation_result_pb2.DISPOSITION_PROCEED
    assert answer.verdict == operation_service_pb2.GUARDRAIL_VERDICT_REVIEW
    assert answer.receipt.payer == PAYER_OWNER
    assert answer.receipt.settlement == operation_result_pb2.SETTLEMENT_SETTLED
    assert answer.receipt.usage.cost_nano_usd > 0
    assert answer.receipt.finish_reason == operation_result_pb2.FINISH_REASON_STOP
    assert again.receipt.is_replay
    again.receipt.is_replay = False
    assert again == answer


async def test_embeddings_come_with_their_space(served: Served) -> None:
    """Values, space and receipt are all there."""
    served.bench.provider.script = [vectors]
    async with served.as_("edge") as stub:
        answer = await stub.GenerateEmbeddings(
            operation_service_pb2.GenerateEmbeddingsRequest(context=request().context, texts=["a", "b"])
        )
    assert [len(embedding.values) for embedding in answer.embeddings] == [1024, 1024]
    assert (answer.space.maker, answer.space.model) == ("openai", "text-embedding-3-small")


async def test_bad_input_names_every_field_at_once(served: Served) -> None:
    """A request with several faults is refused with all of them, and HOLD."""
    context = operation_service_pb2.OperationContext(request_id="not-a-uuid", agent_id="an agent")
    async with served.as_("platform") as stub:
        error = await refused(stub.EvaluateGuardrail(request(context=context, content="")))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    details = error.detail(BadRequest)
    assert details is not None
    assert {violation.field for violation in details.field_violations} == {
        "context.request_id",
        "context.agent_id",
        "content",
    }
    failure_detail = error.detail(operation_result_pb2.OperationFailure)
    assert failure_detail is not None
    assert failure_detail.disposition == operation_result_pb2.DISPOSITION_HOLD


async def test_a_failure_tells_what_happened_to_money(served: Served) -> None:
    """The report travels as a detail: attempts, settlement, and that nothing may be waved through."""
    served.bench.provider.script = [failure(401, "invalid_api_key")]
    async with served.as_("platform") as stub:
        error = await refused(stub.EvaluateGuardrail(request()))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PROVIDER_KEY_REJECTED")
    assert error.metadata == {"providerKeyId": "key-1", "provider": "openai"}
    told = error.detail(operation_result_pb2.OperationFailure)
    assert told is not None
    assert told.settlement == operation_result_pb2.SETTLEMENT_RELEASED
    assert [(each.reason, each.http_status) for each in told.attempts] == [("PROVIDER_KEY_REJECTED", 401)]
    assert not told.retryable


@pytest.mark.parametrize("role", ["operator", "router", "keyvault", "stranger"])
async def test_only_listed_roles_may_have_operations_run(served: Served, role: str) -> None:
    """Another service's certificate opens nothing."""
    async with served.as_(role) as stub:
        error = await refused(stub.EvaluateGuardrail(request()))
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
    assert served.bench.keys.queries == []


async def test_only_the_platform_may_have_the_platform_pay(served: Served) -> None:
    """An edge acts for owners, and may not spend the platform's money by mere request."""
    served.bench.keys.platform = served.bench.keys.leases
    served.bench.admission.platform_pays = True
    context = operation_service_pb2.OperationContext(request_id=new_uuid7(CLOCK.now()))
    context.platform_payer.purpose = "moderation audit"
    async with served.as_("edge") as stub:
        error = await refused(stub.EvaluateGuardrail(request(context=context)))
    assert error.reason == "CALLER_NOT_ALLOWED"
    async with served.as_("platform") as stub:
        answer = await stub.EvaluateGuardrail(request(context=context))
    assert answer.receipt.payer_rule


async def test_a_key_is_validated_for_its_owner(served: Served) -> None:
    """An operator, too, may have a key tested; the request needs somebody to act for."""
    async with open_channel(f"localhost:{served.port}", served.ca.issue("operator")) as channel:
        stub = ProviderServiceStub(channel)
        asked = provider_service_pb2.ValidateKeyRequest(request_id=new_uuid7(CLOCK.now()), key_id="key-1")
        error = await refused(stub.ValidateKey(asked))
        assert error.reason == "INVALID_ARGUMENT"
        served.bench.provider.script = [failure(401, "invalid_api_key")]
        asked.acting_for.CopyFrom(Principal(owner_id="owner-1"))
        answer = await stub.ValidateKey(asked)
    assert answer.verdict == provider_service_pb2.KEY_VERDICT_REJECTED
    assert not answer.HasField("receipt")


async def test_nobody_becomes_an_operator_by_saying_so(served: Served) -> None:
    """KeyVault believes the Router, so that the Router looks at its own caller's role."""
    async with open_channel(f"localhost:{served.port}", served.ca.issue("edge")) as channel:
        asked = provider_service_pb2.ValidateKeyRequest(
            request_id=new_uuid7(CLOCK.now()), key_id="key-1", acting_for=Principal(operator_id="operator-1")
        )
        error = await refused(ProviderServiceStub(channel).ValidateKey(asked))
    assert error.reason == "CALLER_NOT_ALLOWED"
    context = request().context
    context.acting_for.operator_id = "operator-1"
    async with served.as_("platform") as stub:
        error = await refused(stub.EvaluateGuardrail(request(context=context)))
    assert error.reason == "CALLER_NOT_ALLOWED"
    assert served.bench.keys.queries == []


@pytest.mark.parametrize("agent_id", ["ägent", "agent\u200b1", "agent 1", "a" * 129])
async def test_an_id_that_keyvault_would_refuse_is_refused_here(served: Served, agent_id: str) -> None:
    """Ids are printable ASCII, also at the Router: what KeyVault refuses would come back late and untyped."""
    context = operation_service_pb2.OperationContext(request_id=new_uuid7(CLOCK.now()), agent_id=agent_id)
    async with served.as_("platform") as stub:
        error = await refused(stub.EvaluateGuardrail(request(context=context)))
    assert error.reason == "INVALID_ARGUMENT"
    assert served.bench.keys.queries == []


async def test_a_deadline_that_ends_first_leaves_the_call_held(served: Served) -> None:
    """The caller's deadline ends the provider call; what was sent stays in suspense."""
    bench = served.bench
    bench.provider.hold = asyncio.Event()
    async with served.as_("platform") as stub:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await stub.EvaluateGuardrail(request(), timeout=0.4)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert bench.admission.holds == {}
    assert [charge.usage for charge in bench.admission.charges] == [None]
