"""The platform's money, through the three real services: its own key is tested, and spent only where policy says so."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import grpc
import pytest

from byok.keyvault.v1 import key_service_pb2, key_service_pb2_grpc, provider_key_pb2
from byok.metering.v1 import usage_service_pb2, usage_service_pb2_grpc
from byok.router.v1 import operation_service_pb2, provider_service_pb2, provider_service_pb2_grpc
from byok.type.v1.account_pb2 import PAYER_PLATFORM, Account, Principal
from servicekit.wire import error_from_rpc
from testkit.simulator.vendors import make_key
from testkit.stack.customer import Customer, Suite, new_request_id
from testkit.stack.stack import Stack, StackOptions
from testkit.waiting import eventually

OPERATOR = Principal(operator_id="operator-1")


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """Run a stack of its own, since the policy that is changed here is everybody's."""
    async with Stack(tmp_path, options=StackOptions(is_durable=False)) as running:
        yield running


async def _add_platform_key(suite: Suite) -> provider_service_pb2.ValidateKeyResponse:
    keys = key_service_pb2_grpc.KeyServiceStub(suite.channel("keyvault", "operator"))
    providers = provider_service_pb2_grpc.ProviderServiceStub(suite.channel("router", "operator"))
    created = await keys.CreateKey(
        key_service_pb2.CreateKeyRequest(
            request_id=new_request_id(),
            acting_for=OPERATOR,
            actor="test",
            scope=provider_key_pb2.KEY_SCOPE_PLATFORM,
            provider="openai",
            base_url=suite.stack.simulator.base_url("openai"),
            plaintext=make_key("openai", "platform").encode(),
        )
    )
    return await providers.ValidateKey(
        provider_service_pb2.ValidateKeyRequest(
            request_id=new_request_id(), acting_for=OPERATOR, actor="test", key_id=created.key.key_id
        )
    )


async def _embedded(customer: Customer) -> operation_service_pb2.GenerateEmbeddingsResponse | None:
    """Return vectors; nothing while the Router has not found its way back to a Metering that was restarted."""
    try:
        return await customer.embed(["one", "two"])
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return None


async def _platform_entries(suite: Suite, request_id: str) -> list[usage_service_pb2.LedgerEntry]:
    usage = usage_service_pb2_grpc.UsageServiceStub(suite.channel("metering", "operator"))
    request = usage_service_pb2.ListLedgerEntriesRequest(
        account=Account(platform=True), acting_for=OPERATOR, request_id=request_id
    )
    return list((await usage.ListLedgerEntries(request)).entries)


async def _refusal(suite: Suite, request: operation_service_pb2.EvaluateGuardrailRequest) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await suite.operations.EvaluateGuardrail(request)
    error = error_from_rpc(refused.value)
    return error.reason, error.metadata.get("cause", "")


async def test_the_platform_pays_for_what_its_policy_names_and_nothing_else(stack: Stack) -> None:
    """Embeddings of an agent without a key run on the platform's key; its guardrails still need a key of its own."""
    async with Suite(stack) as suite:
        validated = await _add_platform_key(suite)
        assert validated.verdict == provider_service_pb2.KEY_VERDICT_VALID
        assert validated.receipt.payer == PAYER_PLATFORM
        connection = await asyncpg.connect(stack.metering_dsn)
        await connection.execute("UPDATE policy SET pays_embedding_fallback = true, pays_caller_requests = true")
        await connection.close()
        await stack.restart("metering")
        customer = Customer(suite)
        await customer.register()
        answer = await eventually(lambda: _embedded(customer), lambda found: found is not None)
        assert answer is not None
        assert answer.receipt.payer == PAYER_PLATFORM
        assert answer.receipt.payer_rule == "platform_embedding_fallback"
        assert answer.receipt.key_id == validated.key.key_id
        asked = operation_service_pb2.EvaluateGuardrailRequest(
            context=customer.context(), content="A recipe.", policy_text="No recipes."
        )
        assert await _refusal(suite, asked) == ("BYOK_KEY_REQUIRED", "NO_KEY")
        by_request = operation_service_pb2.OperationContext(
            request_id=new_request_id(),
            platform_payer=operation_service_pb2.PlatformAttribution(purpose="audit of moderation"),
        )
        asked.context.CopyFrom(by_request)
        judged = await suite.operations.EvaluateGuardrail(asked)
        assert judged.receipt.payer_rule == "platform_caller_requested"
        entries = await eventually(lambda: _platform_entries(suite, by_request.request_id), bool)
        assert [each.platform_purpose for each in entries] == ["audit of moderation"]
