"""ListCandidates' messages, from protobuf to what the use case takes, and back. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from byok.keyvault.v1 import lease_service_pb2
from keyvault.api.key_mapping import binding_to, key_to
from keyvault.api.lease_mapping import agent_purpose_from, space_from
from keyvault.api.share_mapping import share_to

if TYPE_CHECKING:
    from keyvault.domain.leases import AgentPurpose, EmbeddingSpace
    from keyvault.usecases.list_candidates import Candidates
    from servicekit.identity import Caller


def candidates_query_from(
    request: lease_service_pb2.ListCandidatesRequest, caller: Caller
) -> tuple[AgentPurpose, EmbeddingSpace | None]:
    """Return what ListCandidates asks for."""
    space = space_from(request.required_space) if request.HasField("required_space") else None
    return agent_purpose_from(request.agent, "agent", caller), space


def candidates_to(candidates: Candidates) -> lease_service_pb2.ListCandidatesResponse:
    """Return the candidates in the order in which they are tried."""
    return lease_service_pb2.ListCandidatesResponse(
        candidates=[
            lease_service_pb2.LeaseCandidate(
                key=key_to(candidate.key),
                verdict=int(verdict),  # type: ignore[arg-type]  # the numbers are the contract's own
                share=None if candidate.share is None else share_to(candidate.share),
            )
            for candidate, verdict in candidates.judged
        ],
        binding=binding_to(candidates.binding),
        authority_index=candidates.authority_index,
    )
