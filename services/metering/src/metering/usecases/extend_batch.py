"""Extending: holds of streams that go on are kept longer."""

from collections.abc import Sequence

from metering.domain.errors import RebuildingError, ReservationClosedError
from metering.domain.reservations import ExtendCommand, Extended, NotHeld
from metering.ports import AdmissionStore
from metering.usecases.admission_gate import AdmissionGate
from servicekit.errors import DomainError


class ExtendBatch:
    """Keeps holds longer."""

    def __init__(self, *, store: AdmissionStore, gate: AdmissionGate) -> None:
        """Use ports."""
        self._store = store
        self._gate = gate

    async def __call__(self, commands: Sequence[ExtendCommand]) -> list[Extended | DomainError]:
        """Extend a batch.

        Raises:
            RebuildingError: Counters are being rebuilt.
            DependencyUnavailableError: Redis cannot be reached.
        """
        licence = self._gate.enter_to_finish()
        results: list[Extended | DomainError] = []
        for command, outcome in zip(commands, await self._store.extend(commands, licence), strict=True):
            if isinstance(outcome, (Extended, DomainError)):
                results.append(outcome)
            elif isinstance(outcome, NotHeld):
                results.append(
                    ReservationClosedError(
                        "The reservation is closed and can't be extended.", reservation_id=command.reservation_id
                    )
                )
            else:
                self._gate.suspect()
                results.append(RebuildingError("Counters are being rebuilt from the ledger; retry soon."))
        return results
