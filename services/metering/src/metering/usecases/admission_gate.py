"""Whether this replica may admit, on which history of Redis, and until when.

The licence is counted from before its renewal, on the monotonic clock, and looked at again after Redis has replied: a
grant that leaves after the licence's end may meet counters that are being rebuilt without it.

Apart from the licence, nothing new is admitted before it is known how KeyVault's audit log stands to what was witnessed
of it, nor while it contradicts that. What was admitted goes on.
"""

import asyncio

from metering.domain.errors import CustodyLogRolledBackError, DependencyUnavailableError, RebuildingError
from metering.domain.licences import Licence
from servicekit.clock import Clock
from servicekit.errors import OverloadedError


class AdmissionGate:
    """Shared by admission, which asks, and the workers, who open and close it."""

    def __init__(self, clock: Clock) -> None:
        """Start closed."""
        self._clock = clock
        self._licence: Licence | None = None
        self._until = 0.0
        self._is_rebuilding = False
        self._full_because: dict[str, str] = {}
        self._is_custody_known = False
        self._rolled_back_size: int | None = None
        self.suspicion = asyncio.Event()

    @property
    def licence(self) -> Licence | None:
        """Return the licence that was given last, also if it has ended by now."""
        return self._licence

    @property
    def is_rebuilding(self) -> bool:
        """Tell whether counters are being rebuilt, or were never there."""
        return self._is_rebuilding or self._licence is None

    @property
    def is_open(self) -> bool:
        """Tell whether this replica may admit, as far as its stores go."""
        return self._licence is not None and not self._is_rebuilding and self._clock.monotonic() < self._until

    @property
    def is_admitting(self) -> bool:
        """Tell whether a reserve would be let in, as long as no bound is reached."""
        return self.is_open and self._is_custody_known and self._rolled_back_size is None

    def open(self, licence: Licence, *, until: float) -> None:
        """Let reserves in until a time of the monotonic clock."""
        self._licence = licence
        self._until = until
        self._is_rebuilding = False

    def close(self, *, is_rebuilding: bool) -> None:
        """Let nothing in; settlements too stop while counters are rebuilt."""
        self._until = 0.0
        self._is_rebuilding = is_rebuilding

    def fill(self, bound: str, because: str) -> None:
        """Refuse reserves because a bound is reached; an empty reason lets them in again, as far as that bound goes."""
        if because:
            self._full_because[bound] = because
        else:
            self._full_because.pop(bound, None)

    def note_custody(self, *, rolled_back_size: int | None) -> None:
        """Take over how KeyVault's log stands; of one that was rolled back, how much of it had been witnessed."""
        self._is_custody_known = True
        self._rolled_back_size = rolled_back_size

    def suspect(self) -> None:
        """Have the licence looked at now: something says that Redis is another one."""
        self.suspicion.set()

    def enter(self) -> Licence:
        """Return the licence to reserve on.

        Raises:
            CustodyLogRolledBackError: KeyVault's log contradicts what was witnessed of it.
            RebuildingError: Counters are being rebuilt.
            DependencyUnavailableError: The licence has ended, or how KeyVault's log stands was not read yet.
            OverloadedError: A backlog is at its bound.
        """
        self.ensure_custody()
        licence = self.enter_to_finish()
        if self._clock.monotonic() >= self._until:
            raise DependencyUnavailableError(
                "The licence to admit has ended and Postgres has not renewed it; retry soon.", dependency="postgres"
            )
        if self._full_because:
            reasons = " and ".join(sorted(self._full_because.values()))
            raise OverloadedError(f"Nothing new is admitted: {reasons}. Retry soon.")
        return licence

    def ensure_custody(self) -> None:
        """Check that KeyVault's log continues what was witnessed of it, so that something new may begin.

        Raises:
            CustodyLogRolledBackError: It contradicts it.
            DependencyUnavailableError: How it stands was not read yet.
        """
        if self._rolled_back_size is not None:
            raise CustodyLogRolledBackError(
                "KeyVault's audit log is not the one that was witnessed: it was restored from a backup, or edited. "
                "Nothing is admitted until an operator has looked at it and called AcceptCustodyRestore.",
                witnessed_size=self._rolled_back_size,
            )
        if not self._is_custody_known:
            raise DependencyUnavailableError(
                "How KeyVault's audit log stands was not read from Postgres yet; retry soon.", dependency="postgres"
            )

    def enter_to_finish(self) -> Licence:
        """Return the licence to settle, release or extend on: what was admitted must end, also after the licence has.

        Raises:
            RebuildingError: Counters are being rebuilt, or were never there.
        """
        if self.is_rebuilding or self._licence is None:
            raise RebuildingError("Counters are being rebuilt from the ledger; retry soon.")
        return self._licence

    def confirm(self, licence: Licence) -> None:
        """Check, after Redis has replied, that what it granted may leave.

        Raises:
            RebuildingError: The history has changed meanwhile.
            DependencyUnavailableError: The licence has ended meanwhile.
        """
        current = self.enter_to_finish()
        if current.identity != licence.identity or current.generations != licence.generations:
            raise RebuildingError("Redis was replaced while the call was under way; retry soon.")
        if self._clock.monotonic() >= self._until:
            raise DependencyUnavailableError(
                "The licence to admit ended while the call was under way; retry soon.", dependency="postgres"
            )
