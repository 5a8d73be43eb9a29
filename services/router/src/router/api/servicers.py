"""The servicers of the Router: each call is mapped in, answered by its use case, and mapped out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog
from typing_extensions import override

from byok.router.v1.operation_service_pb2_grpc import OperationServiceServicer
from byok.router.v1.provider_service_pb2_grpc import ProviderServiceServicer
from router.api.mapping import (
    embedding_request,
    embedding_response,
    guardrail_request,
    guardrail_response,
    validation_request,
    validation_response,
)
from servicekit.calls import current_call
from servicekit.errors import CallerNotAllowedError
from servicekit.identity import current_caller

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import grpc

    from byok.router.v1.operation_service_pb2 import (
        EvaluateGuardrailRequest,
        EvaluateGuardrailResponse,
        GenerateEmbeddingsRequest,
        GenerateEmbeddingsResponse,
    )
    from byok.router.v1.provider_service_pb2 import ValidateKeyRequest, ValidateKeyResponse
    from router.domain.operations import OperationContext, Principal
    from router.domain.receipts import Receipt
    from router.usecases.evaluate_guardrail import EvaluateGuardrail
    from router.usecases.generate_embeddings import GenerateEmbeddings
    from router.usecases.validate_key import ValidateKey
    from servicekit.clock import Clock

_log = structlog.get_logger("router.operations")

# Who may have the platform pay by mere request.
_PLATFORM_PAYER_ROLE: Final = "platform"
_OPERATOR_ROLE: Final = "operator"


class OperationServicer(OperationServiceServicer):
    """`byok.router.v1.OperationService`."""

    def __init__(
        self,
        *,
        evaluate_guardrail: EvaluateGuardrail,
        generate_embeddings: GenerateEmbeddings,
        clock: Clock,
        count: Callable[[str, Receipt], None] = lambda _operation, _receipt: None,
    ) -> None:
        """Answer by these use cases; `count` is told of every answer."""
        self._evaluate_guardrail = evaluate_guardrail
        self._generate_embeddings = generate_embeddings
        self._clock = clock
        self._count = count

    @override
    async def EvaluateGuardrail(
        self, request: EvaluateGuardrailRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> EvaluateGuardrailResponse:
        asked = guardrail_request(request)
        _check_roles(asked.context)
        answer = await self._evaluate_guardrail(asked, deadline=_deadline(self._clock))
        self._conclude("guardrail_evaluation", asked.context, answer.receipt)
        return guardrail_response(asked.context.request_id, answer)

    @override
    async def GenerateEmbeddings(
        self, request: GenerateEmbeddingsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GenerateEmbeddingsResponse:
        asked = embedding_request(request)
        _check_roles(asked.context)
        answer = await self._generate_embeddings(asked, deadline=_deadline(self._clock))
        self._conclude("embedding_generation", asked.context, answer.receipt)
        return embedding_response(asked.context.request_id, answer)

    def _conclude(self, operation: str, context: OperationContext, receipt: Receipt) -> None:
        # Once the answer is on its way: counting and logging are nobody's latency.
        asyncio.get_running_loop().call_soon(self._tell, operation, context, receipt)

    def _tell(self, operation: str, context: OperationContext, receipt: Receipt) -> None:
        self._count(operation, receipt)
        usage = receipt.usage
        _log.info(
            "operation.answered",
            operation=operation,
            request_id=context.request_id,
            agent_id=context.agent_id,
            payer=receipt.payer.value,
            provider=receipt.provider,
            model=receipt.model,
            provider_key_id=receipt.key_id,
            lease_id=receipt.lease_id,
            settlement=receipt.settlement.value,
            attempts=receipt.attempts,
            cost_nano_usd=usage.cost_nano_usd if usage is not None else None,
            latency_ms=round(receipt.latency.total_seconds() * 1000, 3),
            provider_latency_ms=round(receipt.provider_latency.total_seconds() * 1000, 3),
            is_replay=receipt.is_replay,
        )


class ProviderServicer(ProviderServiceServicer):
    """`byok.router.v1.ProviderService`."""

    def __init__(self, *, validate_key: ValidateKey, clock: Clock) -> None:
        """Answer by this use case."""
        self._validate_key = validate_key
        self._clock = clock

    @override
    async def ValidateKey(
        self, request: ValidateKeyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ValidateKeyResponse:
        asked = validation_request(request)
        _check_principal(asked.acting_for)
        answer = await self._validate_key(asked, deadline=_deadline(self._clock))
        _log.info(
            "provider_key.validated",
            request_id=asked.request_id,
            provider_key_id=asked.key_id,
            verdict=answer.verdict,
            models=len(answer.models),
        )
        return validation_response(asked.request_id, answer)


def _deadline(clock: Clock) -> float:
    """Return when the call under way must have been answered, on our own monotonic clock."""
    call = current_call()
    if call is None or call.deadline is None:  # pragma: no cover (the server gives every unary call a deadline)
        raise AssertionError
    return clock.monotonic() + (call.deadline - asyncio.get_running_loop().time())


def _check_principal(principal: Principal | None) -> None:
    # KeyVault believes what we say of an operator, so that we must know who says it to us.
    if principal is not None and principal.operator_id and _OPERATOR_ROLE not in current_caller().roles:
        raise CallerNotAllowedError("Only a caller with the role operator may act as an operator.")


def _check_roles(context: OperationContext) -> None:
    _check_principal(context.acting_for)
    if context.platform_purpose and _PLATFORM_PAYER_ROLE not in current_caller().roles:
        raise CallerNotAllowedError("This caller may not have the platform pay. Name an agent instead.")
