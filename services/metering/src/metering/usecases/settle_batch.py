"""Settling: the truth takes the place of each hold, whatever has become of it."""

from collections.abc import Sequence
from typing import Final

import msgspec

from metering.domain.accounts import PLATFORM, partition_of
from metering.domain.enums import Leg, Payer
from metering.domain.errors import (
    AccountNotFoundError,
    AlreadySettledError,
    DependencyUnavailableError,
    RebuildingError,
)
from metering.domain.ledger import platform_leg_id
from metering.domain.licences import Licence
from metering.domain.reservations import NeedsHistory, Repeat, SettleCommand, Settled, SettleOutcome
from metering.ports import AdmissionStore, History, Ledger
from metering.usecases.admission_gate import AdmissionGate
from metering.usecases.agent_directory import AgentDirectory
from servicekit.errors import DomainError

_ROUNDS_MAX: Final = 3


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """Where a settlement stands."""

    partition: int
    generation: int
    sequence: int
    overrun_nano_usd: int
    is_repeat: bool


SettleResult = Settlement | DomainError


class SettleBatch:
    """Never stops for a limit, a full memory or an ended licence: the money is spent."""

    def __init__(self, *, store: AdmissionStore, ledger: Ledger, gate: AdmissionGate, agents: AgentDirectory) -> None:
        """Use ports."""
        self._store = store
        self._ledger = ledger
        self._gate = gate
        self._agents = agents

    async def __call__(self, commands: Sequence[SettleCommand]) -> list[SettleResult]:
        """Settle a batch.

        Raises:
            RebuildingError: Counters are being rebuilt.
            DependencyUnavailableError: Redis cannot be reached.
        """
        licence = self._gate.enter_to_finish()
        refused: dict[int, DomainError] = {}
        for i, command in enumerate(commands):
            try:
                await self._agents.ensure_account(command.account)
            except AccountNotFoundError as error:
                refused[i] = error
            except DependencyUnavailableError:
                # What Postgres cannot tell now must not hold up the truth; nobody's account has no counter.
                continue
        accepted = [command for i, command in enumerate(commands) if i not in refused]
        outcomes = iter(await self._run(accepted, licence))
        legs = [
            _platform_leg(command)
            for command in accepted
            if command.facts.payer == Payer.PLATFORM and command.account != PLATFORM
        ]
        if legs:
            await self._run(legs, licence)
        return [
            refused[i] if i in refused else self._result(command, next(outcomes), licence)
            for i, command in enumerate(commands)
        ]

    async def _run(self, commands: Sequence[SettleCommand], licence: Licence) -> list[SettleOutcome | DomainError]:
        histories: dict[int, History] = {}
        outcomes: dict[int, SettleOutcome | DomainError] = {}
        open_items = list(range(len(commands)))
        for _ in range(_ROUNDS_MAX):
            if not open_items:
                break
            known = {position: histories[i] for position, i in enumerate(open_items) if i in histories}
            replies = await self._store.settle([commands[i] for i in open_items], licence, histories=known)
            outcomes.update(zip(open_items, replies, strict=True))
            open_items = [i for i in open_items if isinstance(outcomes[i], NeedsHistory)]
            for i in open_items:
                found = await self._ledger.find_operation(commands[i].call.request_id, commands[i].account)
                histories[i] = History(found)
        return [outcomes[i] for i in range(len(commands))]

    def _result(self, command: SettleCommand, outcome: SettleOutcome | DomainError, licence: Licence) -> SettleResult:
        partition = partition_of(command.account)
        generation = licence.generations[partition]
        if isinstance(outcome, Settled):
            return Settlement(partition, generation, outcome.sequence, outcome.overrun_nano_usd, is_repeat=False)
        if isinstance(outcome, Repeat):
            facts = command.facts
            is_same = (outcome.cost_nano_usd, outcome.tokens) == (
                facts.cost_nano_usd,
                facts.input_tokens + facts.output_tokens,
            )
            if is_same or command.in_suspense:
                return Settlement(partition, generation, outcome.sequence, 0, is_repeat=True)
            return AlreadySettledError(
                "The reservation was settled already with other figures; the first ones stand.",
                reservation_id=command.reservation_id,
            )
        if isinstance(outcome, DomainError):
            return outcome
        self._gate.suspect()
        return RebuildingError("Counters are being rebuilt from the ledger; retry soon.")


def _platform_leg(command: SettleCommand) -> SettleCommand:
    facts = msgspec.structs.replace(
        command.facts, leg=int(Leg.PLATFORM), for_account=command.account, sealed_answer=b""
    )
    return msgspec.structs.replace(
        command, reservation_id=platform_leg_id(command.reservation_id), account=PLATFORM, facts=facts
    )
