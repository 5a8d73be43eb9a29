"""Loading, rolling and reading accounts, in memory."""

from typing_extensions import override

from metering.adapters.memory.state import MemoryState, has_rolled
from metering.domain.accounts import AccountKey
from metering.domain.enums import CallState
from metering.domain.licences import Licence
from metering.domain.matching import window_of
from metering.domain.reservations import Fenced, NeedsAccount, NeedsCalendar
from metering.domain.windows import Calendar
from metering.ports import (
    AccountLoaded,
    AccountMoved,
    AccountReading,
    AccountSnapshot,
    CounterReading,
    CounterStore,
    LoadStarted,
)


class MemoryCounterStore(CounterStore):
    """The accounts of a state."""

    def __init__(self, state: MemoryState) -> None:
        """Work on a state."""
        self._state = state

    @override
    async def begin_load(
        self, account: AccountKey, licence: Licence, *, version: int, stand_still_ms: int
    ) -> LoadStarted | AccountLoaded | Fenced:
        partition = self._state.enter(account, licence)
        if partition is None:
            return Fenced()
        known = partition.accounts[account]
        if known.version is not None and known.version >= version:
            return AccountLoaded(known.version)
        known.loading_until = partition.seen_ms + stand_still_ms
        return LoadStarted(partition.seen_ms, known.sequence)

    @override
    async def load(self, snapshot: AccountSnapshot, licence: Licence) -> AccountLoaded | AccountMoved | Fenced:
        partition = self._state.enter(snapshot.account, licence)
        if partition is None:
            return Fenced()
        account = partition.accounts[snapshot.account]
        if account.version is not None and account.version >= snapshot.version:
            return AccountLoaded(account.version)
        if account.sequence != snapshot.sequence:
            return AccountMoved(account.sequence)
        account.version, account.calendar, account.plan = snapshot.version, snapshot.calendar, snapshot.plan
        account.loading_until = 0
        account.limits = sorted((limit for limit, _, _, _ in snapshot.counters), key=lambda limit: limit.slot)
        account.counters = {(limit.slot, start): amount for limit, start, _, amount in snapshot.counters}
        for hold in account.holds.values():
            account.join(hold, partition.seen_ms)
            account.adjust(hold, calls=hold.calls, tokens=hold.tokens, cost=hold.cost)
        return AccountLoaded(snapshot.version)

    @override
    async def roll(self, account: AccountKey, licence: Licence, calendar: Calendar) -> None:
        partition = self._state.enter(account, licence)
        if partition is None:
            return
        known = partition.accounts[account]
        if known.calendar is not None and all(
            new >= old for new, old in zip(calendar.flat(), known.calendar.flat(), strict=True)
        ):
            known.calendar = calendar

    @override
    async def read(
        self, account: AccountKey, licence: Licence
    ) -> AccountReading | NeedsAccount | NeedsCalendar | Fenced:
        partition = self._state.enter(account, licence)
        if partition is None:
            return Fenced()
        known = partition.accounts[account]
        if known.version is None or known.calendar is None:
            return NeedsAccount()
        if has_rolled(partition.seen_ms, known.calendar):
            return NeedsCalendar(partition.seen_ms)
        readings = []
        for limit in known.limits:
            span = window_of(limit, partition.seen_ms, known.calendar)
            counter = (limit.slot, span.start)
            sums = {CallState.HELD: 0, CallState.SUSPENSE: 0}
            for hold in known.holds.values():
                sums[hold.state] += sum(hold.part(unit) for standing, unit in hold.counters if standing == counter)
            readings.append(
                CounterReading(
                    limit.limit_id,
                    span.start,
                    span.end,
                    known.counters.get(counter, 0),
                    sums[CallState.HELD],
                    sums[CallState.SUSPENSE],
                )
            )
        return AccountReading(partition.seen_ms, known.version, known.sequence, tuple(readings))
