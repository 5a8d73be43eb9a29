"""Looking an operation up: a revoked key must not hide an answer that was paid, and a free call may begin or not."""

import msgspec

from metering.domain.accounts import AccountKey
from metering.domain.enums import CallState, OperationState
from metering.domain.errors import RebuildingError, RequestIdReusedError
from metering.domain.reservations import Found, LookupCommand, NeedsHistory, PriorOperation, Reused
from metering.ports import AdmissionStore, Ledger
from metering.usecases.admission_gate import AdmissionGate
from metering.usecases.agent_directory import AgentDirectory
from metering.usecases.final_outcomes import FinalOutcome, FinalOutcomes

_PRIOR_STATES = {
    CallState.SETTLED: OperationState.BILLED,
    CallState.SUSPENSE: OperationState.SUSPENSE,
    CallState.POSTED: OperationState.SUSPENSE,
    CallState.HELD: OperationState.HELD,
}


class LookupResult(msgspec.Struct, frozen=True):
    """How far an operation has come, and its outcome if it is closed."""

    found: Found
    outcome: FinalOutcome | None = None


class LookupOperation:
    """Asks Redis, and Postgres for what Redis keeps no longer."""

    def __init__(
        self,
        *,
        store: AdmissionStore,
        ledger: Ledger,
        gate: AdmissionGate,
        agents: AgentDirectory,
        outcomes: FinalOutcomes,
    ) -> None:
        """Use ports."""
        self._store = store
        self._ledger = ledger
        self._gate = gate
        self._agents = agents
        self._outcomes = outcomes

    async def __call__(
        self, request_id: str, *, agent_id: str, account: AccountKey | None, body_hash: bytes
    ) -> LookupResult:
        """Look an operation up.

        Raises:
            RequestIdReusedError: The id was used with another body.
            CustodyLogRolledBackError: It is not closed, and nothing new may begin.
            RebuildingError: Counters are being rebuilt.
            DependencyUnavailableError: Redis or Postgres cannot be reached.
            AgentNotFoundError: No account is named and the agent is not registered.
        """
        licence = self._gate.enter_to_finish()
        named = account or (await self._agents.agent(agent_id)).account
        command = LookupCommand(request_id=request_id, account=named, body_hash=body_hash)
        found = await self._store.lookup(command, licence)
        if isinstance(found, NeedsHistory):
            prior = await self._ledger.find_operation(request_id, named)
            found = _of_history(prior, body_hash)
        if isinstance(found, Reused):
            raise RequestIdReusedError("The request id was used with another body; take a new one.")
        if not isinstance(found, Found):
            self._gate.suspect()
            raise RebuildingError("Counters are being rebuilt from the ledger; retry soon.")
        if found.state is not OperationState.FINAL:
            self._gate.ensure_custody()
            return LookupResult(found)
        outcome = await self._outcomes.read(
            request_id, named, licence, sequence=found.sequence, attempts=found.attempts
        )
        return LookupResult(found, outcome)


def _of_history(prior: PriorOperation | None, body_hash: bytes) -> Found | Reused:
    if prior is None:
        return Found(OperationState.UNKNOWN)
    if body_hash and prior.body_hash != body_hash:
        return Reused()
    if prior.is_final:
        return Found(OperationState.FINAL, sequence=-1, attempts=len(prior.attempts))
    last = prior.attempts[-1]
    return Found(_PRIOR_STATES.get(last.state, OperationState.RELEASED), holder=last.holder)
