"""Loading an account into Redis: its limits, and what the ledger counts in their windows.

Admission of the account stands still for the moment between the fold and the load. Settlements do not; if one came in
between, the fold is made again.
"""

import asyncio
from datetime import timedelta
from typing import Final

import msgspec

from metering.domain.accounts import AccountKey, partition_of
from metering.domain.errors import AccountNotFoundError, DependencyUnavailableError, RebuildingError
from metering.domain.licences import Licence
from metering.domain.limits import Limit
from metering.domain.matching import window_of
from metering.domain.plans import terms_of
from metering.domain.reservations import Fenced
from metering.domain.windows import calendar_at, from_ms
from metering.ports import AccountLoaded, AccountSnapshot, CounterStore, Directory, Ledger, Limits, LoadStarted
from servicekit.clock import Clock

_encode: Final = msgspec.msgpack.Encoder().encode


class LoadPace(msgspec.Struct, frozen=True, kw_only=True):
    """How long a load may take, and how often it looks."""

    stand_still: timedelta = timedelta(seconds=5)
    poll: timedelta = timedelta(milliseconds=20)
    attempts_max: int = 8


class LoadAccounts:
    """Brings accounts to Redis at the config version that Postgres has."""

    def __init__(
        self,
        *,
        counters: CounterStore,
        ledger: Ledger,
        directory: Directory,
        limits: Limits,
        clock: Clock,
        pace: LoadPace | None = None,
    ) -> None:
        """Use ports."""
        self._counters = counters
        self._ledger = ledger
        self._directory = directory
        self._limits = limits
        self._clock = clock
        self._pace = pace or LoadPace()
        self._under_way: dict[AccountKey, asyncio.Task[None]] = {}

    async def __call__(self, account: AccountKey, licence: Licence) -> None:
        """Load an account; callers of the same account share one load.

        Raises:
            AccountNotFoundError: There is no such account.
            RebuildingError: The partition belongs to another generation by now.
            DependencyUnavailableError: Redis or Postgres cannot be reached, or the account does not come to rest.
        """
        task = self._under_way.get(account)
        if task is None:
            task = asyncio.create_task(self._load(account, licence))
            self._under_way[account] = task
            task.add_done_callback(lambda _: self._under_way.pop(account, None))
        # A caller that goes away must not stop the load for the others.
        await asyncio.shield(task)

    async def _load(self, account: AccountKey, licence: Licence) -> None:
        found = await self._directory.find_account(account)
        if found is None:
            raise AccountNotFoundError("There is no such account; register an agent under it first.")
        plan = await self._directory.find_plan(found.plan)
        limits = await self._limits.list_limits(account)
        stand_still_ms = self._pace.stand_still // timedelta(milliseconds=1)
        for _ in range(self._pace.attempts_max):
            started = await self._counters.begin_load(
                account, licence, version=found.config_version, stand_still_ms=stand_still_ms
            )
            if isinstance(started, Fenced):
                raise _fenced()
            if isinstance(started, AccountLoaded):
                break
            await self._wait_for(account, licence, started.sequence)
            snapshot = await self._fold(account, started, limits, time_zone=found.time_zone)
            snapshot = msgspec.structs.replace(snapshot, version=found.config_version, plan=_encode(terms_of(plan)))
            loaded = await self._counters.load(snapshot, licence)
            if isinstance(loaded, Fenced):
                raise _fenced()
            if isinstance(loaded, AccountLoaded):
                break
        else:
            raise DependencyUnavailableError(
                "The account's counters do not come to rest; retry soon.", dependency="redis"
            )
        await self._limits.mark_applied(account, found.config_version)

    async def _wait_for(self, account: AccountKey, licence: Licence, sequence: int) -> None:
        """Wait until all that was written for the account is in the ledger."""
        if sequence == 0:
            return
        partition = partition_of(account)
        end = self._clock.monotonic() + self._pace.stand_still.total_seconds()
        while self._clock.monotonic() < end:
            watermark = (await self._ledger.watermarks())[partition]
            if watermark.generation != licence.generations[partition]:
                raise _fenced()
            if watermark.sequence >= sequence:
                return
            await self._clock.sleep(self._pace.poll)
        raise DependencyUnavailableError(
            "The ledger is behind; the account is loaded when it has caught up.", dependency="postgres"
        )

    async def _fold(
        self, account: AccountKey, started: LoadStarted, limits: list[Limit], *, time_zone: str
    ) -> AccountSnapshot:
        calendar = calendar_at(from_ms(started.now_ms), time_zone)
        spans = [(limit, window_of(limit, started.now_ms, calendar)) for limit in limits]
        amounts = await self._ledger.fold(account, [(limit, span.start, span.end) for limit, span in spans])
        counters = tuple(
            (limit, span.start, span.end, amount) for (limit, span), amount in zip(spans, amounts, strict=True)
        )
        return AccountSnapshot(account, 0, started.sequence, calendar, b"", counters)


def _fenced() -> RebuildingError:
    return RebuildingError("Redis was replaced while the account was loaded; retry soon.")
