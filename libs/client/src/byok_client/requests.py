"""Builds the requests of operations from plain arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from byok.router.v1.operation_service_pb2 import (
    EmbeddingPurpose,
    EvaluateGuardrailRequest,
    GenerateEmbeddingsRequest,
    GuardrailRule,
    GuardrailRules,
    OperationContext,
    PlatformAttribution,
)
from byok.type.v1.account_pb2 import Principal
from byok.type.v1.account_pb2 import Subject as SubjectMessage
from byok.type.v1.embedding_space_pb2 import EmbeddingSpace
from byok_client.request_ids import new_request_id

PURPOSES: Final[Mapping[str, EmbeddingPurpose.ValueType]] = {
    "": EmbeddingPurpose.EMBEDDING_PURPOSE_UNSPECIFIED,
    "document": EmbeddingPurpose.EMBEDDING_PURPOSE_DOCUMENT,
    "query": EmbeddingPurpose.EMBEDDING_PURPOSE_QUERY,
    "similarity": EmbeddingPurpose.EMBEDDING_PURPOSE_SIMILARITY,
    "classification": EmbeddingPurpose.EMBEDDING_PURPOSE_CLASSIFICATION,
    "clustering": EmbeddingPurpose.EMBEDDING_PURPOSE_CLUSTERING,
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What an operation is for, in the platform's own words, such as `Subject("submission", "42")`."""

    type: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Who an operation is for: an agent, or the platform itself.

    Attributes:
        agent_id: The agent whose owner's key pays. Empty with `platform_purpose`.
        platform_purpose: Why the platform itself pays. Empty with `agent_id`.
        owner_id: The owner on whose behalf, if the caller acts for one: it must be the agent's.
        actor: The person or service that asks.
        subject: What the operation is for.
        request_id: Empty: one is made. A job from a queue gives `request_id_for(...)`.
        supersedes_request_id: An earlier request whose answer is not kept and that is bought again on purpose.
    """

    agent_id: str = ""
    platform_purpose: str = ""
    owner_id: str = ""
    actor: str = ""
    subject: Subject | None = None
    request_id: str = ""
    supersedes_request_id: str = ""

    def message(self) -> OperationContext:
        """Return the message, with a request id in any case."""
        context = OperationContext(
            request_id=self.request_id or new_request_id(),
            actor=self.actor,
            supersedes_request_id=self.supersedes_request_id,
        )
        # With neither, the attribution stays unset, and Router names the field.
        if self.agent_id:
            context.agent_id = self.agent_id
        if self.platform_purpose:
            context.platform_payer.CopyFrom(PlatformAttribution(purpose=self.platform_purpose))
        if self.owner_id:
            context.acting_for.CopyFrom(Principal(owner_id=self.owner_id))
        if self.subject is not None:
            context.subject.CopyFrom(SubjectMessage(type=self.subject.type, id=self.subject.id))
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Where vectors can be compared with each other."""

    maker: str
    model: str
    dimensions: int


def guardrail_request(
    attribution: Attribution, *, content: str, policy_text: str, rules: Mapping[str, str]
) -> EvaluateGuardrailRequest:
    """Return the request; one of `policy_text` and `rules` (id to description) must be given.

    Raises:
        ValueError: Both or none were given.
    """
    if bool(policy_text) == bool(rules):
        message = "give either policy_text or rules"
        raise ValueError(message)
    request = EvaluateGuardrailRequest(context=attribution.message(), content=content)
    if policy_text:
        request.policy_text = policy_text
    else:
        named = [GuardrailRule(rule_id=rule_id, description=text) for rule_id, text in rules.items()]
        request.rules.CopyFrom(GuardrailRules(rules=named))
    return request


def embeddings_request(
    attribution: Attribution, *, texts: Sequence[str], purpose: str, space: Space | None
) -> GenerateEmbeddingsRequest:
    """Return the request.

    Raises:
        ValueError: `purpose` is none of `PURPOSES`.
    """
    if purpose not in PURPOSES:
        message = f"purpose must be one of {', '.join(filter(None, PURPOSES))}, or empty"
        raise ValueError(message)
    wanted = EmbeddingSpace(maker=space.maker, model=space.model, dimensions=space.dimensions) if space else None
    return GenerateEmbeddingsRequest(
        context=attribution.message(), texts=texts, purpose=PURPOSES[purpose], space=wanted
    )
