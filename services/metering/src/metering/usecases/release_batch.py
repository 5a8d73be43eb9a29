"""Releasing: holds whose calls were never billed are given back."""

from collections.abc import Sequence

import msgspec

from metering.domain.accounts import PLATFORM
from metering.domain.enums import Leg, Payer
from metering.domain.errors import AlreadySettledError, RebuildingError
from metering.domain.ledger import reservation_id
from metering.domain.reservations import AlreadySettled, ReleaseCommand, Released
from metering.ports import AdmissionStore
from metering.usecases.admission_gate import AdmissionGate
from servicekit.errors import DomainError


class ReleaseBatch:
    """Gives back both legs of a call; of an unknown call it leaves a tombstone."""

    def __init__(self, *, store: AdmissionStore, gate: AdmissionGate) -> None:
        """Use ports."""
        self._store = store
        self._gate = gate

    async def __call__(self, commands: Sequence[ReleaseCommand]) -> list[Released | DomainError]:
        """Release a batch.

        Raises:
            RebuildingError: Counters are being rebuilt.
            DependencyUnavailableError: Redis cannot be reached.
        """
        licence = self._gate.enter_to_finish()
        results: list[Released | DomainError] = []
        for command, outcome in zip(commands, await self._store.release(commands, licence), strict=True):
            if isinstance(outcome, (Released, DomainError)):
                results.append(outcome)
            elif isinstance(outcome, AlreadySettled):
                known = reservation_id(command.call.request_id, max(command.attempt, 1), command.account)
                results.append(
                    AlreadySettledError("The reservation was settled; it cannot be given back.", reservation_id=known)
                )
            else:
                self._gate.suspect()
                results.append(RebuildingError("Counters are being rebuilt from the ledger; retry soon."))
        legs = [
            msgspec.structs.replace(command, account=PLATFORM, leg=Leg.PLATFORM)
            for command, result in zip(commands, results, strict=True)
            if isinstance(result, Released) and result.payer == Payer.PLATFORM and command.account != PLATFORM
        ]
        if legs:
            await self._store.release(legs, licence)
        return results
