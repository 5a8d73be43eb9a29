"""Requests and answers between protobuf and the domain. Pure; what a request may hold is checked by the domain."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from google.protobuf.duration_pb2 import Duration

from byok.keyvault.v1.provider_key_pb2 import ProviderKey
from byok.router.v1 import operation_result_pb2, operation_service_pb2, provider_service_pb2
from catalogue.models import EmbeddingSpace
from router.api.errors import SETTLEMENTS
from router.domain.completions import FinishReason
from router.domain.embeddings import EmbeddingPurpose
from router.domain.guardrails import Verdict
from router.domain.operations import (
    EmbeddingRequest,
    GuardrailRequest,
    GuardrailRule,
    KeyValidationRequest,
    OperationContext,
    Subject,
)
from router.messages import OPERATIONS, PAYERS, principal_of, space_message, usage_message
from router.ports import KeyVerdict
from servicekit.errors import FieldViolation, InvalidArgumentError

if TYPE_CHECKING:
    from datetime import timedelta

    from google.protobuf.message import Message

    from router.domain.answers import EmbeddingAnswer, GuardrailAnswer, ValidationAnswer
    from router.domain.receipts import Receipt

_PURPOSES: Final = {
    operation_service_pb2.EMBEDDING_PURPOSE_UNSPECIFIED: EmbeddingPurpose.UNSPECIFIED,
    # No vendor makes other vectors for it.
    operation_service_pb2.EMBEDDING_PURPOSE_SIMILARITY: EmbeddingPurpose.UNSPECIFIED,
    operation_service_pb2.EMBEDDING_PURPOSE_DOCUMENT: EmbeddingPurpose.DOCUMENT,
    operation_service_pb2.EMBEDDING_PURPOSE_QUERY: EmbeddingPurpose.QUERY,
    operation_service_pb2.EMBEDDING_PURPOSE_CLASSIFICATION: EmbeddingPurpose.CLASSIFICATION,
    operation_service_pb2.EMBEDDING_PURPOSE_CLUSTERING: EmbeddingPurpose.CLUSTERING,
}
_VERDICTS: Final = {
    each: operation_service_pb2.GuardrailVerdict.Value(f"GUARDRAIL_VERDICT_{each.name}") for each in Verdict
}
_KEY_VERDICTS: Final = {
    each.value: provider_service_pb2.KeyVerdict.Value(f"KEY_VERDICT_{each.name}") for each in KeyVerdict
}
_FINISH_REASONS: Final = {
    FinishReason.STOP: operation_result_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: operation_result_pb2.FINISH_REASON_LENGTH,
    FinishReason.CONTEXT_EXCEEDED: operation_result_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALL: operation_result_pb2.FINISH_REASON_TOOL_CALL,
    FinishReason.REFUSAL: operation_result_pb2.FINISH_REASON_CONTENT_FILTER,
    FinishReason.CONTENT_FILTER: operation_result_pb2.FINISH_REASON_CONTENT_FILTER,
    FinishReason.ERROR: operation_result_pb2.FINISH_REASON_ERROR,
}


def guardrail_request(message: operation_service_pb2.EvaluateGuardrailRequest) -> GuardrailRequest:
    """Return the request as the domain reads it."""
    return GuardrailRequest(
        context=_context(message.context, message),
        content=message.content,
        policy_text=message.policy_text,
        rules=tuple(GuardrailRule(rule_id=rule.rule_id, description=rule.description) for rule in message.rules.rules),
    )


def guardrail_response(request_id: str, answer: GuardrailAnswer) -> operation_service_pb2.EvaluateGuardrailResponse:
    """Return the answer as a message."""
    judgement = answer.judgement
    return operation_service_pb2.EvaluateGuardrailResponse(
        request_id=request_id,
        disposition=operation_result_pb2.DISPOSITION_PROCEED,
        verdict=_VERDICTS[judgement.verdict],
        score=judgement.score,
        findings=[
            operation_service_pb2.RuleFinding(rule_id=each.rule_id, score=each.score, reason=each.reason)
            for each in judgement.findings
        ],
        quotes=[
            operation_service_pb2.Quote(rule_id=each.rule_id, text=each.text, start_char=each.start, end_char=each.end)
            for each in judgement.quotes
        ],
        prompt_version=answer.prompt_version,
        receipt=_receipt(answer.receipt),
    )


def embedding_request(message: operation_service_pb2.GenerateEmbeddingsRequest) -> EmbeddingRequest:
    """Return the request as the domain reads it."""
    space = None
    if message.HasField("space"):
        asked = message.space
        space = EmbeddingSpace(maker=asked.maker, model=asked.model, dimensions=asked.dimensions)
    return EmbeddingRequest(
        context=_context(message.context, message),
        texts=tuple(message.texts),
        purpose=_purpose(message.purpose),
        space=space,
    )


def _purpose(value: operation_service_pb2.EmbeddingPurpose.ValueType) -> EmbeddingPurpose:
    purpose = _PURPOSES.get(value)
    if purpose is None:
        unknown = FieldViolation(
            field="purpose", reason="ENUM_UNKNOWN", description="send a purpose that this release knows, or none"
        )
        raise InvalidArgumentError(violations=[unknown])
    return purpose


def embedding_response(request_id: str, answer: EmbeddingAnswer) -> operation_service_pb2.GenerateEmbeddingsResponse:
    """Return the answer as a message."""
    return operation_service_pb2.GenerateEmbeddingsResponse(
        request_id=request_id,
        disposition=operation_result_pb2.DISPOSITION_PROCEED,
        embeddings=[operation_service_pb2.Embedding(values=vector) for vector in answer.vectors],
        space=space_message(answer.space),
        receipt=_receipt(answer.receipt),
    )


def validation_request(message: provider_service_pb2.ValidateKeyRequest) -> KeyValidationRequest:
    """Return the request as the domain reads it."""
    return KeyValidationRequest(
        request_id=message.request_id,
        body_hash=_body_hash(message),
        acting_for=principal_of(message.acting_for),
        actor=message.actor,
        key_id=message.key_id,
    )


def validation_response(request_id: str, answer: ValidationAnswer) -> provider_service_pb2.ValidateKeyResponse:
    """Return the answer as a message."""
    return provider_service_pb2.ValidateKeyResponse(
        request_id=request_id,
        verdict=_KEY_VERDICTS[answer.verdict],
        explanation=answer.explanation,
        models=answer.models,
        coverage=[
            provider_service_pb2.OperationCoverage(
                operation=OPERATIONS[each.operation],
                covered=each.is_covered,
                model=each.model,
                missing=each.missing,
            )
            for each in answer.coverage
        ],
        key=ProviderKey.FromString(answer.key),
        receipt=_receipt(answer.receipt) if answer.receipt is not None else None,
    )


def _context(message: operation_service_pb2.OperationContext, whole: Message) -> OperationContext:
    is_platforms = message.WhichOneof("attribution") == "platform_payer"
    return OperationContext(
        request_id=message.request_id,
        body_hash=_body_hash(whole),
        agent_id=message.agent_id,
        platform_purpose=message.platform_payer.purpose if is_platforms else "",
        acting_for=principal_of(message.acting_for) if message.HasField("acting_for") else None,
        actor=message.actor,
        subject=Subject(type=message.subject.type, id=message.subject.id) if message.HasField("subject") else None,
        supersedes_request_id=message.supersedes_request_id,
    )


def _body_hash(message: Message) -> bytes:
    # Over the request as it came, unknown fields included: a newer caller's other field is another body. Within one
    # release of protobuf the order is fixed; across releases a repetition may be refused, never wrongly answered.
    return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()


def _receipt(receipt: Receipt) -> operation_result_pb2.OperationReceipt:
    return operation_result_pb2.OperationReceipt(
        payer=PAYERS[receipt.payer],
        payer_rule=receipt.payer_rule,
        key_id=receipt.key_id,
        lease_id=receipt.lease_id,
        provider=receipt.provider,
        model=receipt.model,
        usage=usage_message(receipt.usage) if receipt.usage is not None else None,
        settlement=SETTLEMENTS[receipt.settlement],
        reservation_ids=receipt.reservation_ids,
        attempts=receipt.attempts,
        latency=_duration(receipt.latency),
        provider_latency=_duration(receipt.provider_latency),
        finish_reason=_FINISH_REASONS.get(receipt.finish_reason, operation_result_pb2.FINISH_REASON_UNSPECIFIED),
        is_replay=receipt.is_replay,
    )


def _duration(value: timedelta) -> Duration:
    return Duration(seconds=value.days * 86_400 + value.seconds, nanos=value.microseconds * 1_000)
