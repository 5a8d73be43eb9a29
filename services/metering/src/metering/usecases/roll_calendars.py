"""Giving an account the calendar of a new day or month."""

from metering.domain.accounts import AccountKey
from metering.domain.errors import AccountNotFoundError
from metering.domain.licences import Licence
from metering.domain.windows import calendar_at, from_ms
from metering.ports import CounterStore, Directory


class RollCalendars:
    """Knows zones, which scripts cannot."""

    def __init__(self, *, counters: CounterStore, directory: Directory) -> None:
        """Use ports."""
        self._counters = counters
        self._directory = directory

    async def __call__(self, account: AccountKey, licence: Licence, *, now_ms: int) -> None:
        """Give an account the calendar around a time.

        Raises:
            AccountNotFoundError: There is no such account.
            DependencyUnavailableError: Redis or Postgres cannot be reached.
        """
        found = await self._directory.find_account(account)
        if found is None:
            raise AccountNotFoundError("There is no such account; register an agent under it first.")
        await self._counters.roll(account, licence, calendar_at(from_ms(now_ms), found.time_zone))
