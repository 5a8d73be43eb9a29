"""ListCandidates: which keys could serve an agent's operation, in order, and why each would be passed over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyvault.domain.bindings import StoredBinding
from keyvault.domain.leases import Candidate, Judge, LeaseItem, Verdict, ensure_agents_owner, ensure_not_halted
from keyvault.usecases.read_authority import believed

if TYPE_CHECKING:
    from keyvault.domain.leases import AgentPurpose, EmbeddingSpace
    from keyvault.ports import Capabilities
    from keyvault.usecases.read_authority import ReadAuthority
    from servicekit.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The candidates with their verdicts, at one index of the log."""

    judged: tuple[tuple[Candidate, Verdict], ...]
    binding: StoredBinding
    authority_index: int


class ListCandidates:
    """Judges by the very rule by which leases are picked; nothing is leased and nothing is written."""

    def __init__(self, *, read: ReadAuthority, capabilities: Capabilities, clock: Clock) -> None:
        """Read authority through `read`."""
        self._read = read
        self._capabilities = capabilities
        self._clock = clock

    async def __call__(self, purpose: AgentPurpose, required_space: EmbeddingSpace | None) -> Candidates:
        """Return the keys that the agent may use, revoked ones left out.

        Raises:
            AgentNotFoundError: the agent is not bound, or the caller acts for another owner.
            HaltedError: an emergency stop covers the agent, or the provider of the key whose turn it is.
            AuthorityForgedError: a row was not written by this service as it stands.
        """
        authority = await self._read((purpose,))
        halts = believed(authority.halts)
        binding = ensure_agents_owner(authority.binding(purpose.agent_id), purpose)
        ensure_not_halted(halts, binding)
        judge = Judge(
            item=LeaseItem(purpose, required_space=required_space),
            operation=purpose.operation,
            can_serve=self._capabilities.can_serve,
            now=self._clock.now(),
        )
        judged = tuple((each, judge(each)) for each in authority.candidates(binding))
        for candidate, verdict in judged:
            if verdict in (Verdict.USABLE, Verdict.COOLING_DOWN):
                halts.ensure_none((candidate.provider_scope,))
            if verdict is Verdict.USABLE:
                break
        return Candidates(judged=judged, binding=binding, authority_index=authority.head)
