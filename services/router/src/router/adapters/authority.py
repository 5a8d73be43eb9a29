"""What this process knows of authority now: the changes it has heard of, and how fresh its contact with KeyVault is.

A lease or a "no key" answer holds while all of this is true:

    now < time of the last echoed ping + partition bound      (else a revocation may have been missed)
    now < request time + life
    no change that touches it has a higher index than it was granted at

Changes are remembered longer than any lease lives, so that a lease that arrives late, granted before a change that is
known already, is dropped too.
"""

import asyncio
from collections import deque
from datetime import timedelta
from typing import Final

from byok.keyvault.v1.lease_service_pb2 import AuthorityChange
from router.domain.leases import Account, AccountKind, Lease, NoKey
from router.domain.refusals import LeaseEndedError
from servicekit.clock import Clock

CHANGES_REMEMBERED: Final = timedelta(seconds=300)


class Authority:
    """The state of authority as heard from KeyVault; belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        """Start out of contact."""
        self._clock = clock
        self._bound = 0.0
        self._last_echo = float("-inf")
        self._keys: dict[str, int] = {}
        self._agents: dict[str, int] = {}
        self._owners: dict[str, int] = {}
        self._organizations: dict[str, int] = {}
        # A test call of a key names no agent, and no owner when none of theirs is bound: it ends by whose key it is.
        self._parties = {AccountKind.OWNER: self._owners, AccountKind.ORGANIZATION: self._organizations}
        self._platform = 0
        self._everything = 0
        self._restart_time = float("-inf")
        self._heard: deque[tuple[float, dict[str, int], str, int]] = deque()
        self._contact = asyncio.Event()
        self.index = 0

    @property
    def is_in_contact(self) -> bool:
        """Whether a revocation would have been heard of by now."""
        return self._clock.monotonic() < self._last_echo + self._bound

    async def wait_for_contact(self, at_most: timedelta) -> bool:
        """Wait until there is contact, and say whether there is."""
        if self.is_in_contact:
            return True
        self._contact.clear()
        try:
            async with asyncio.timeout(at_most.total_seconds()):
                await self._contact.wait()
        except TimeoutError:
            return self.is_in_contact
        return True

    def begin(self, *, index: int, partition_bound: timedelta) -> None:
        """Note that a watch has begun at `index`; there is contact only after its first echo.

        A watch that begins later than what was heard tells nothing of what lies between: all from before it ends.
        """
        self._bound = partition_bound.total_seconds()
        if index > self.index:
            self._everything = max(self._everything, index)
        self.index = max(self.index, index)

    def note_echo(self, ping_time: float, *, index: int) -> None:
        """Note that every change before `ping_time` has been heard."""
        self.index = max(self.index, index)
        self._last_echo = max(self._last_echo, ping_time)
        self._contact.set()

    def note_change(self, change: AuthorityChange) -> None:
        """Note a change; what was granted below its index and is touched by it has ended."""
        index = change.authority_index
        self.index = max(self.index, index)
        is_named = False
        for known, name in (
            (self._keys, change.key_id),
            (self._agents, change.agent_id),
            (self._owners, change.owner_id),
            (self._organizations, change.organization_id),
        ):
            if name:
                is_named = True
                known[name] = max(index, known.get(name, 0))
                self._heard.append((self._clock.monotonic(), known, name, index))
        if change.platform:
            self._platform = max(self._platform, index)
        elif not is_named:
            # A halt that is not one party's, or a kind of change that this release does not know: end everything rather
            # than miss something.
            self._everything = max(self._everything, index)

    def restart(self) -> None:
        """Forget everything: the log is another one, so that no index of before means anything."""
        self.index = 0
        self._last_echo = float("-inf")
        self._restart_time = self._clock.monotonic()
        self._keys.clear()
        self._agents.clear()
        self._owners.clear()
        self._organizations.clear()
        self._heard.clear()
        self._platform = self._everything = 0

    def ensure(self, granted: Lease | NoKey) -> None:
        """Check that what KeyVault answered still holds.

        Raises:
            LeaseEndedError: It was changed, ran out of time, or there is no contact.
        """
        now = self._clock.monotonic()
        if now >= granted.request_time + granted.life.total_seconds():
            raise LeaseEndedError(rule="life")
        if now >= self._last_echo + self._bound:
            raise LeaseEndedError(rule="contact")
        if granted.request_time < self._restart_time or self._is_changed(granted):
            raise LeaseEndedError(rule="authority")

    def _is_changed(self, granted: Lease | NoKey) -> bool:
        index = granted.authority_index
        if isinstance(granted, Lease):
            if self._keys.get(granted.key_id, 0) > index or self._last_change(granted.owned_by) > index:
                return True
        elif not granted.agent_id and self._platform > index:
            return True
        return (
            self._agents.get(granted.agent_id, 0) > index
            or self._owners.get(granted.owner_id, 0) > index
            or self._everything > index
            or self._last_change(granted.account) > index
        )

    def _last_change(self, account: Account | None) -> int:
        """Return the index of the last change that touches all that an account owns, and all of its agents."""
        if account is None:
            return 0
        if account.kind is AccountKind.PLATFORM:
            return self._platform
        return self._parties[account.kind].get(account.id, 0)

    def forget_old(self) -> None:
        """Forget changes that no living lease can be older than."""
        horizon = self._clock.monotonic() - CHANGES_REMEMBERED.total_seconds()
        while self._heard and self._heard[0][0] < horizon:
            _, known, name, index = self._heard.popleft()
            if known.get(name) == index:
                del known[name]
