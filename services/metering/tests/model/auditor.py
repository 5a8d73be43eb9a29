"""What must hold of a history that has come to rest.

Importable by tests as `services.metering.tests.model.auditor`.
"""

from services.metering.tests.model.losses import Losses
from services.metering.tests.model.world import BrokenPromiseError, Truth


class Audited(Losses):
    """A world that is checked by somebody who sees everything."""

    def audit(self) -> None:
        """Check what must hold of a history that has come to rest."""
        self.audit_ledger()
        self.audit_counters()

    def audit_ledger(self) -> None:
        """Check that the ledger has everything once, and that its sums say the same."""
        for rid, truth in self.truth.items():
            if rid in self.given_twice:
                continue
            total = self.postgres.total(rid)
            allowed = _allowed(truth)
            if total not in allowed:
                raise BrokenPromiseError(f"{rid} is {total} in the ledger, and was {truth}")
        self._audit_ghosts()
        windows = self.postgres.by_window()
        for window in set(windows) | set(self.postgres.sums):
            if self.postgres.sums[window] != windows.get(window, 0):
                raise BrokenPromiseError(f"sums of window {window} differ from its entries")

    def audit_counters(self) -> None:
        """Check that Redis counts what the ledger and the holds come to."""
        windows = self.postgres.by_window()
        for window, counted in self.redis.counters.items():
            held = sum(hold.amount for hold in self.redis.holds.values() if hold.window == window)
            if counted != windows.get(window, 0) + held:
                raise BrokenPromiseError(f"window {window} counts {counted}, the ledger {windows.get(window, 0)}")

    def _audit_ghosts(self) -> None:
        """Nothing is charged for a call that its Router gave up and never made."""
        for rid, _, _ in self.postgres.ledger.values():
            if rid in self.truth or rid[0] in self.wiped_tombstones:
                continue
            attempts = self.redis.operations.get(rid[0], [])
            holder = attempts[rid[1] - 1].holder if len(attempts) >= rid[1] else ""
            is_alive = any(router.name == holder for router in self.routers)
            if is_alive and (rid[0], holder, 0) in self.given_up and self.postgres.total(rid):
                raise BrokenPromiseError(f"{rid} is charged, and was given up")


def _allowed(truth: Truth) -> set[int]:
    """Return what the ledger may have of a reservation."""
    allowed = {truth.amount} if truth.spent is None else {truth.spent}
    if truth.is_dead:
        # Its Router died before its word was durable: the word, or the estimate, or nothing if the hold was in the lag.
        allowed |= {truth.amount}
        allowed |= {0} if truth.is_lost else set()
    return allowed
